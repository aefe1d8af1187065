package peers;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonFactoryBuilder;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadFeature;
import java.io.IOException;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.processor.TimestampExtractor;

/** What the features need of an event. */
record Event(long time, double amount) {
    private static final JsonFactory JSON =
        new JsonFactoryBuilder().enable(StreamReadFeature.USE_FAST_DOUBLE_PARSER).build();

    /** A streaming parser that stops once it has both fields: the cheapest that Jackson offers. */
    static Event parse(byte[] json) {
        long time = Long.MIN_VALUE;
        double amount = Double.NaN;
        try (JsonParser parser = JSON.createParser(json, 0, json.length)) {
            parser.nextToken();
            for (String outer = parser.nextFieldName(); outer != null; outer = parser.nextFieldName()) {
                boolean isMetadata = outer.equals("metadata");
                if (parser.nextToken() != JsonToken.START_OBJECT || !isMetadata && !outer.equals("payload")) {
                    parser.skipChildren();
                    continue;
                }
                for (String name = parser.nextFieldName(); name != null; name = parser.nextFieldName()) {
                    parser.nextToken();
                    if (isMetadata && name.equals("timestamp")) {
                        time = parser.getLongValue();
                    } else if (!isMetadata && name.equals("amount")) {
                        amount = parser.getDoubleValue();
                    } else {
                        parser.skipChildren();
                        continue;
                    }
                    if (time != Long.MIN_VALUE && !Double.isNaN(amount)) {
                        return new Event(time, amount);
                    }
                }
            }
        } catch (IOException error) {
            throw new IllegalArgumentException(error);
        }
        throw new IllegalArgumentException("an event without time or amount");
    }

    static Serde<Event> serde() {
        return Serdes.serdeFrom(
            (topic, event) -> {
                throw new UnsupportedOperationException("events are only read");
            },
            (topic, bytes) -> parse(bytes));
    }

    /** Takes the time of the event, not that of its record. */
    static final class Time implements TimestampExtractor {
        @Override
        public long extract(ConsumerRecord<Object, Object> record, long streamTime) {
            return ((Event) record.value()).time();
        }
    }
}
