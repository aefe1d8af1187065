package peers;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;

/**
 * What six aggregates need of some amounts, inside of a byte array, where it is changed in place:
 * objects that were serialized for every event would cost the peers more.
 * Layout: count i32, sum f64, sum of squares f64, min f64, max f64.
 */
final class Totals {
    static final int BYTES = 36;
    static final VarHandle INT = MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.LITTLE_ENDIAN);
    static final VarHandle DOUBLE = MethodHandles.byteArrayViewVarHandle(double[].class, ByteOrder.LITTLE_ENDIAN);
    private static final int SUM = 4;
    private static final int SQUARES = 12;
    private static final int MIN = 20;
    private static final int MAX = 28;

    private Totals() {}

    static byte[] empty() {
        byte[] totals = new byte[BYTES];
        DOUBLE.set(totals, MIN, Double.POSITIVE_INFINITY);
        DOUBLE.set(totals, MAX, Double.NEGATIVE_INFINITY);
        return totals;
    }

    static void first(byte[] to, int at, double amount) {
        INT.set(to, at, 1);
        DOUBLE.set(to, at + SUM, amount);
        DOUBLE.set(to, at + SQUARES, amount * amount);
        DOUBLE.set(to, at + MIN, amount);
        DOUBLE.set(to, at + MAX, amount);
    }

    static byte[] add(byte[] to, int at, double amount) {
        INT.set(to, at, (int) INT.get(to, at) + 1);
        DOUBLE.set(to, at + SUM, (double) DOUBLE.get(to, at + SUM) + amount);
        DOUBLE.set(to, at + SQUARES, (double) DOUBLE.get(to, at + SQUARES) + amount * amount);
        if (amount < (double) DOUBLE.get(to, at + MIN)) {
            DOUBLE.set(to, at + MIN, amount);
        }
        if (amount > (double) DOUBLE.get(to, at + MAX)) {
            DOUBLE.set(to, at + MAX, amount);
        }
        return to;
    }

    static void merge(byte[] to, byte[] from, int at) {
        INT.set(to, 0, (int) INT.get(to, 0) + (int) INT.get(from, at));
        DOUBLE.set(to, SUM, (double) DOUBLE.get(to, SUM) + (double) DOUBLE.get(from, at + SUM));
        DOUBLE.set(to, SQUARES, (double) DOUBLE.get(to, SQUARES) + (double) DOUBLE.get(from, at + SQUARES));
        DOUBLE.set(to, MIN, Math.min((double) DOUBLE.get(to, MIN), (double) DOUBLE.get(from, at + MIN)));
        DOUBLE.set(to, MAX, Math.max((double) DOUBLE.get(to, MAX), (double) DOUBLE.get(from, at + MAX)));
    }

    /** Count, sum, mean, min, max and sample deviation as a JSON array. */
    static String features(byte[] totals) {
        int count = (int) INT.get(totals, 0);
        if (count == 0) {
            return "[0,0.0,null,null,null,null]";
        }
        double sum = (double) DOUBLE.get(totals, SUM);
        double squares = (double) DOUBLE.get(totals, SQUARES);
        double variance = Math.max(0.0, (squares - sum * sum / count) / (count - 1));
        String deviation = count == 1 ? "null" : Double.toString(Math.sqrt(variance));
        return "[" + count + "," + sum + "," + sum / count + "," + DOUBLE.get(totals, MIN) + ","
            + DOUBLE.get(totals, MAX) + "," + deviation + "]";
    }
}
