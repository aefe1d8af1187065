package peers;

import static peers.Totals.INT;

/**
 * All windows of one user in one row, as a careful user of Kafka Streams would write it: a tile per
 * step of a window that has events, and none for the others.
 * Layout: number of tiles of each window (u8 × 4), then by window its tiles, oldest first, each
 * step number i32 and totals.
 */
final class TileRow {
    private static final int WINDOWS = Windows.LENGTHS.length;
    private static final int TILE = 4 + Totals.BYTES;

    private TileRow() {}

    private static int step(int window, long time) {
        return (int) (time / Windows.step(window));
    }

    /** The row to store: the same one, changed in place, if no step begins with this event. */
    static byte[] add(byte[] row, long time, double amount) {
        if (row == null) {
            return first(time, amount);
        }
        int missing = 0; // Bit w: window w has no tile for this step.
        int begin = WINDOWS;
        for (int window = 0; window < WINDOWS; window++) {
            int end = begin + row[window] * TILE;
            int step = step(window, time);
            int at = behind(row, begin, end, step) - TILE;
            if (at >= begin && (int) INT.get(row, at) == step) {
                Totals.add(row, at + 4, amount);
            } else {
                missing |= 1 << window;
            }
            begin = end;
        }
        return missing == 0 ? row : grow(row, missing, time, amount);
    }

    private static byte[] first(long time, double amount) {
        byte[] row = new byte[WINDOWS + WINDOWS * TILE];
        for (int window = 0; window < WINDOWS; window++) {
            row[window] = 1;
            put(row, WINDOWS + window * TILE, step(window, time), amount);
        }
        return row;
    }

    /** Behind the last tile whose step is not later; looked for from the newest, where it mostly is. */
    private static int behind(byte[] row, int begin, int end, int step) {
        int at = end;
        while (at > begin && (int) INT.get(row, at - TILE) > step) {
            at -= TILE;
        }
        return at;
    }

    private static void put(byte[] row, int at, int step, double amount) {
        INT.set(row, at, step);
        Totals.first(row, at + 4, amount);
    }

    /** Copies the row with the missing tiles, and without tiles that have left their window. */
    private static byte[] grow(byte[] row, int missing, long time, double amount) {
        int[] expired = new int[WINDOWS];
        int size = row.length;
        int begin = WINDOWS;
        for (int window = 0; window < WINDOWS; window++) {
            int end = begin + row[window] * TILE;
            if ((missing >> window & 1) == 1) {
                int step = step(window, time);
                int newest = Math.max(step, (int) INT.get(row, end - TILE));
                if (step <= newest - Windows.STEPS) {
                    missing &= ~(1 << window); // Late by more than the window: no reader will see it.
                } else {
                    size += TILE;
                }
                expired[window] = behind(row, begin, end, newest - Windows.STEPS) - begin;
                size -= expired[window];
            }
            begin = end;
        }
        byte[] grown = new byte[size];
        int to = WINDOWS;
        begin = WINDOWS;
        for (int window = 0; window < WINDOWS; window++) {
            int end = begin + row[window] * TILE;
            int kept = begin + expired[window];
            int tiles = row[window] - expired[window] / TILE;
            if ((missing >> window & 1) == 1) {
                int step = step(window, time);
                int at = behind(row, kept, end, step);
                System.arraycopy(row, kept, grown, to, at - kept);
                to += at - kept;
                put(grown, to, step, amount);
                to += TILE;
                kept = at;
                tiles++;
            }
            System.arraycopy(row, kept, grown, to, end - kept);
            to += end - kept;
            grown[window] = (byte) tiles;
            begin = end;
        }
        return grown;
    }

    /** Totals of a window at {@code now}: the step that holds it and the 59 before. */
    static byte[] totals(byte[] row, int window, long now) {
        byte[] totals = Totals.empty();
        if (row == null) {
            return totals;
        }
        int begin = WINDOWS;
        for (int before = 0; before < window; before++) {
            begin += row[before] * TILE;
        }
        int last = step(window, now);
        for (int at = begin; at < begin + row[window] * TILE; at += TILE) {
            int step = (int) INT.get(row, at);
            if (step <= last && step > last - Windows.STEPS) {
                Totals.merge(totals, row, at + 4);
            }
        }
        return totals;
    }
}
