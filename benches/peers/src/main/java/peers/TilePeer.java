package peers;

import java.util.Map;
import java.util.Set;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.ProcessorSupplier;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/** The Processor API with one row per user: the cheapest that we know how to write. */
final class TilePeer implements Peer {
    private static final String STORE = "tiles";

    @Override
    public Topology topology(String topic, AtomicLong processed) {
        StoreBuilder<KeyValueStore<Bytes, byte[]>> store = Stores
            .keyValueStoreBuilder(Stores.persistentKeyValueStore(STORE), Serdes.Bytes(), Serdes.ByteArray())
            .withLoggingEnabled(Map.of())
            .withCachingEnabled();
        ProcessorSupplier<Bytes, Event, Void, Void> supplier = new ProcessorSupplier<>() {
            @Override
            public Processor<Bytes, Event, Void, Void> get() {
                return new Tiles(processed);
            }

            @Override
            public Set<StoreBuilder<?>> stores() {
                return Set.of(store);
            }
        };
        StreamsBuilder builder = new StreamsBuilder();
        builder
            .stream(topic, Consumed.with(Serdes.Bytes(), Event.serde()).withTimestampExtractor(new Event.Time()))
            .process(supplier);
        return builder.build();
    }

    private static final class Tiles implements Processor<Bytes, Event, Void, Void> {
        private final AtomicLong processed;
        private KeyValueStore<Bytes, byte[]> store;

        Tiles(AtomicLong processed) {
            this.processed = processed;
        }

        @Override
        public void init(ProcessorContext<Void, Void> context) {
            store = context.getStateStore(STORE);
        }

        @Override
        public void process(Record<Bytes, Event> record) {
            Event event = record.value();
            store.put(record.key(), TileRow.add(store.get(record.key()), event.time(), event.amount()));
            Peer.count(processed);
        }
    }

    @Override
    public byte[] totals(KafkaStreams streams, Bytes user, int window, long now) {
        var type = QueryableStoreTypes.<Bytes, byte[]>keyValueStore();
        byte[] row = streams.store(StoreQueryParameters.fromNameAndType(STORE, type)).get(user);
        return TileRow.totals(row, window, now);
    }
}
