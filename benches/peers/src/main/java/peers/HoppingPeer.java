package peers;

import java.time.Duration;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KGroupedStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.WindowStore;

/** The DSL as its documentation shows it: hopping windows, each event in 60 windows of each length. */
final class HoppingPeer implements Peer {
    private static final Duration GRACE = Duration.ofSeconds(5);

    @Override
    public Topology topology(String topic, AtomicLong processed) {
        StreamsBuilder builder = new StreamsBuilder();
        KGroupedStream<Bytes, Event> users = builder
            .stream(topic, Consumed.with(Serdes.Bytes(), Event.serde()).withTimestampExtractor(new Event.Time()))
            .peek((user, event) -> Peer.count(processed))
            .groupByKey(Grouped.with(Serdes.Bytes(), Event.serde()));
        for (int window = 0; window < Windows.LENGTHS.length; window++) {
            Duration length = Duration.ofMillis(Windows.LENGTHS[window]);
            users
                .windowedBy(TimeWindows.ofSizeAndGrace(length, GRACE).advanceBy(Duration.ofMillis(Windows.step(window))))
                .aggregate(
                    Totals::empty,
                    (user, event, totals) -> Totals.add(totals, 0, event.amount()),
                    Materialized.<Bytes, byte[], WindowStore<Bytes, byte[]>>as(store(window))
                        .withKeySerde(Serdes.Bytes())
                        .withValueSerde(Serdes.ByteArray())
                        .withCachingEnabled());
        }
        return builder.build();
    }

    private static String store(int window) {
        return "window-" + window;
    }

    @Override
    public byte[] totals(KafkaStreams streams, Bytes user, int window, long now) {
        var type = QueryableStoreTypes.<Bytes, byte[]>windowStore();
        var store = streams.store(StoreQueryParameters.fromNameAndType(store(window), type));
        byte[] totals = store.fetch(user, Windows.start(window, now));
        return totals == null ? Totals.empty() : totals;
    }
}
