package peers;

/** The four windows of both programs: each is cut into 60 steps, as it usually is. */
final class Windows {
    static final int STEPS = 60;
    static final long[] LENGTHS = {600_000L, 3_600_000L, 86_400_000L, 2_592_000_000L};

    private Windows() {}

    static long step(int window) {
        return LENGTHS[window] / STEPS;
    }

    /** Start of the window that holds {@code now} in its newest step. The oracle rounds alike. */
    static long start(int window, long now) {
        return (now / step(window) - STEPS + 1) * step(window);
    }
}
