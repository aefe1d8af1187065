package peers;

import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.Topology;

/** A way of keeping the features on Kafka Streams. */
interface Peer {
    /** Its program. {@code processed} is set by the only stream thread, for every event. */
    Topology topology(String topic, AtomicLong processed);

    /** Totals of a user's window at {@code now}, whose start is that of {@link Windows#start}. */
    byte[] totals(KafkaStreams streams, Bytes user, int window, long now);

    static Peer of(String name) {
        return switch (name) {
            case "tile" -> new TilePeer();
            case "hopping" -> new HoppingPeer();
            default -> throw new IllegalArgumentException(name);
        };
    }

    /** Cheaper than an increment that other threads could make too. */
    static void count(AtomicLong processed) {
        processed.lazySet(processed.getPlain() + 1);
    }
}
