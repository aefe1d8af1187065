package peers;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * BOOTSTRAP APP: what the changelogs of an application hold, read to their ends like any consumer.
 * BOOTSTRAP alone: tells the broker to leave them as they are written, so that they can be measured.
 */
final class Changelog {
    private Changelog() {}

    public static void main(String[] args) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", args[0]);
        try (Admin admin = Admin.create(settings)) {
            if (args.length == 1) {
                ConfigResource all = new ConfigResource(ConfigResource.Type.BROKER, "");
                ConfigEntry never = new ConfigEntry("log.cleaner.min.compaction.lag.ms", "86400000");
                AlterConfigOp set = new AlterConfigOp(never, AlterConfigOp.OpType.SET);
                admin.incrementalAlterConfigs(Map.of(all, List.of(set))).all().get();
                return;
            }
            List<TopicPartition> partitions = partitions(admin, args[1]);
            long stored = stored(admin, partitions);
            settings.put("isolation.level", "read_committed");
            settings.put("fetch.max.bytes", "67108864");
            settings.put("max.partition.fetch.bytes", "8388608");
            settings.put("max.poll.records", "20000");
            settings.put("enable.auto.commit", "false");
            long[] found = read(settings, partitions);
            System.out.printf("{\"records\":%d,\"bytes\":%d,\"stored\":%d}%n", found[0], found[1], stored);
        }
    }

    private static List<TopicPartition> partitions(Admin admin, String app) throws Exception {
        List<String> topics = admin.listTopics().names().get().stream()
            .filter(topic -> topic.startsWith(app + "-") && topic.endsWith("-changelog"))
            .toList();
        List<TopicPartition> partitions = new ArrayList<>();
        admin.describeTopics(topics).allTopicNames().get().forEach((topic, description) ->
            description.partitions().forEach(p -> partitions.add(new TopicPartition(topic, p.partition()))));
        return partitions;
    }

    /** Bytes on the broker's disk. */
    private static long stored(Admin admin, List<TopicPartition> partitions) throws Exception {
        int broker = admin.describeCluster().nodes().get().iterator().next().id();
        return admin.describeLogDirs(List.of(broker)).allDescriptions().get().get(broker).values().stream()
            .flatMap(folder -> folder.replicaInfos().entrySet().stream())
            .filter(replica -> partitions.contains(replica.getKey()))
            .mapToLong(replica -> replica.getValue().size())
            .sum();
    }

    /** Number of records, and bytes of their keys and values. */
    private static long[] read(Properties settings, List<TopicPartition> partitions) {
        long records = 0;
        long bytes = 0;
        ByteArrayDeserializer raw = new ByteArrayDeserializer();
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(settings, raw, raw)) {
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            while (ends.entrySet().stream().anyMatch(end -> consumer.position(end.getKey()) < end.getValue())) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(200))) {
                    records++;
                    bytes += Math.max(0, record.serializedKeySize()) + Math.max(0, record.serializedValueSize());
                }
            }
        }
        return new long[] {records, bytes};
    }
}
