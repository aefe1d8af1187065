package peers;

import java.io.BufferedOutputStream;
import java.io.FileOutputStream;
import java.io.OutputStream;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * BOOTSTRAP TOPIC USERS SEED SKIP COUNT FILE RATE: sends events SKIP to SKIP + COUNT, and appends them
 * to FILE, which is all that the oracle sees. Makes the topic when SKIP is 0. RATE: events per second
 * at most; 0: as fast as it goes.
 */
final class Produce {
    private Produce() {}

    public static void main(String[] args) throws Exception {
        String topic = args[1];
        long skip = Long.parseLong(args[4]);
        long count = Long.parseLong(args[5]);
        long rate = Long.parseLong(args[7]);
        Properties settings = new Properties();
        settings.put("bootstrap.servers", args[0]);
        if (skip == 0) {
            try (Admin admin = Admin.create(settings)) {
                // Event times lie in the past, and so do those of the records.
                NewTopic made = new NewTopic(topic, 4, (short) 1).configs(Map.of("retention.ms", "-1"));
                admin.createTopics(List.of(made)).all().get();
            }
        }
        settings.put("acks", "all");
        settings.put("linger.ms", rate == 0 ? "20" : "2");
        settings.put("batch.size", "262144");
        settings.put("buffer.memory", "134217728");
        Generator events = new Generator(Long.parseLong(args[3]), Integer.parseInt(args[2]));
        AtomicReference<Exception> failure = new AtomicReference<>();
        long bytes = 0;
        ByteArraySerializer raw = new ByteArraySerializer();
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(settings, raw, raw);
             OutputStream file = new BufferedOutputStream(new FileOutputStream(args[6], true), 1 << 20)) {
            for (long number = 0; number < skip; number++) {
                events.next();
            }
            long begun = System.nanoTime();
            for (long number = 0; number < count; number++) {
                events.next();
                while (rate > 0 && number * 1e9 > (System.nanoTime() - begun) * (double) rate) {
                    Thread.sleep(1);
                }
                byte[] json = events.json();
                bytes += json.length;
                file.write(json);
                file.write('\n');
                producer.send(new ProducerRecord<>(topic, null, events.time(), events.key(), json), (sent, error) -> {
                    if (error != null) {
                        failure.set(error);
                    }
                });
            }
        }
        if (failure.get() != null) {
            throw failure.get();
        }
        System.out.printf("{\"bytes\":%d}%n", bytes);
    }
}
