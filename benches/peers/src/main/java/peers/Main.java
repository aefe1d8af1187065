package peers;

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintWriter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.StateRestoreListener;
import org.apache.kafka.streams.state.RocksDBConfigSetter;
import org.rocksdb.BlockBasedTableConfig;
import org.rocksdb.LRUCache;
import org.rocksdb.Options;
import org.rocksdb.RocksDB;

/**
 * PEER BOOTSTRAP TOPIC STATE: runs a peer until its input ends. Says on standard output, a line each,
 * what happens and how many events it has processed, and takes commands on standard input:
 * "await N" answers once N events are committed, "values USERS NOW FILE" writes features to a file,
 * "stop" closes it.
 */
public final class Main {
    private static final long CACHE_BYTES = 512L << 20;
    private static final long PROGRESS_MS = 10;
    private static final long YEARS_MS = 20L * 365 * 86_400_000;

    private Main() {}

    public static void main(String[] args) throws Exception {
        Peer peer = Peer.of(args[0]);
        AtomicLong processed = new AtomicLong();
        Properties settings = settings(args[0], args[1], args[3]);
        KafkaStreams streams = new KafkaStreams(peer.topology(args[2], processed), settings);
        tellWhatHappens(streams);
        tellProgress(processed);
        streams.start();
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = commands.readLine(); line != null && !line.equals("stop"); line = commands.readLine()) {
            String[] words = line.split(" ");
            if (words[0].equals("await")) {
                awaitCommitted(args[1], args[0], Long.parseLong(words[1]));
                say("committed " + words[1]);
            } else {
                writeValues(peer, streams, words);
                say("written");
            }
        }
        streams.close(Duration.ofSeconds(60));
        System.exit(0);
    }

    private static Properties settings(String app, String bootstrap, String state) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, app);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, state);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, "100");
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, "1");
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, "1");
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, Long.toString(CACHE_BYTES));
        settings.put(StreamsConfig.ROCKSDB_CONFIG_SETTER_CLASS_CONFIG, Rocks.class.getName());
        // Event times lie in the past: a broker would delete changelogs of windows at once.
        settings.put(StreamsConfig.WINDOW_STORE_CHANGE_LOG_ADDITIONAL_RETENTION_MS_CONFIG, Long.toString(YEARS_MS));
        settings.put(StreamsConfig.consumerPrefix("auto.offset.reset"), "earliest");
        settings.put(StreamsConfig.consumerPrefix("session.timeout.ms"), "6000");
        settings.put(StreamsConfig.consumerPrefix("heartbeat.interval.ms"), "1000");
        // A member by name gets its partitions back at once; any other waits for the session timeout.
        settings.put(StreamsConfig.consumerPrefix("group.instance.id"), app);
        settings.put(StreamsConfig.producerPrefix("batch.size"), "262144");
        return settings;
    }

    private static void tellWhatHappens(KafkaStreams streams) {
        AtomicLong restored = new AtomicLong();
        AtomicBoolean isRestoring = new AtomicBoolean();
        streams.setGlobalStateRestoreListener(new StateRestoreListener() {
            @Override
            public void onRestoreStart(TopicPartition partition, String store, long from, long to) {
                System.err.println("restoring " + partition + " from " + from + " to " + to);
                if (isRestoring.compareAndSet(false, true)) {
                    say("restoring");
                }
            }

            @Override
            public void onBatchRestored(TopicPartition partition, String store, long end, long records) {}

            @Override
            public void onRestoreEnd(TopicPartition partition, String store, long records) {
                System.err.println("restored " + partition + ", " + records + " records");
                restored.addAndGet(records);
            }
        });
        streams.setStateListener((now, before) -> {
            System.err.println(before + " to " + now);
            if (now == KafkaStreams.State.RUNNING) {
                say("running " + restored.get());
            } else if (now == KafkaStreams.State.ERROR) {
                System.exit(1);
            }
        });
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
    }

    private static synchronized void say(String line) {
        System.out.println(line);
        System.out.flush();
    }

    private static void tellProgress(AtomicLong processed) {
        Thread thread = new Thread(() -> {
            for (long told = 0;;) {
                long now = processed.get();
                if (now != told) {
                    say("events " + now);
                    told = now;
                }
                try {
                    Thread.sleep(PROGRESS_MS);
                } catch (InterruptedException stopped) {
                    return;
                }
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    private static void awaitCommitted(String bootstrap, String group, long events) throws Exception {
        try (Admin admin = Admin.create(Map.<String, Object>of("bootstrap.servers", bootstrap))) {
            long committed = 0;
            while (committed < events) {
                Thread.sleep(50);
                var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
                committed = offsets.values().stream().mapToLong(offset -> offset.offset()).sum();
            }
        }
    }

    private static void writeValues(Peer peer, KafkaStreams streams, String[] words) throws Exception {
        long now = Long.parseLong(words[2]);
        try (PrintWriter file = new PrintWriter(words[3], StandardCharsets.UTF_8)) {
            for (String user : Files.readAllLines(Path.of(words[1]))) {
                Bytes key = Bytes.wrap(user.getBytes(StandardCharsets.UTF_8));
                StringBuilder line = new StringBuilder("[\"" + user + "\"");
                for (int window = 0; window < Windows.LENGTHS.length; window++) {
                    line.append(',').append(Totals.features(peer.totals(streams, key, window, now)));
                }
                file.println(line.append(']'));
            }
        }
    }

    /** Blocks of all stores in one cache, as the manual recommends. */
    public static final class Rocks implements RocksDBConfigSetter {
        private static LRUCache blocks;

        @Override
        public synchronized void setConfig(String store, Options options, Map<String, Object> settings) {
            if (blocks == null) {
                RocksDB.loadLibrary();
                blocks = new LRUCache(CACHE_BYTES);
            }
            BlockBasedTableConfig table = (BlockBasedTableConfig) options.tableFormatConfig();
            table.setBlockCache(blocks);
            options.setTableFormatConfig(table);
        }

        @Override
        public void close(String store, Options options) {}
    }
}
