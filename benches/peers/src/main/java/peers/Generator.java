package peers;

import java.nio.charset.StandardCharsets;
import java.util.HexFormat;
import java.util.SplittableRandom;

/** Card events: a function of the seed, and the first n are the same however many follow. */
final class Generator {
    private static final double THETA = 0.99;
    private static final long START = 1_700_000_003_000L;
    private static final double MEAN_DISTANCE_MS = 5.0;
    /** A prime, so that ranks spread over all users: hot users shall not be neighbours. */
    private static final long SPREAD = 2_654_435_761L;
    private static final String[] COUNTRIES = {
        "DE", "FR", "GB", "US", "NL", "ES", "IT", "PL", "SE", "CH",
        "AT", "BE", "DK", "NO", "FI", "PT", "CZ", "IE", "HU", "RO"};

    private final SplittableRandom random;
    private final int users;
    private final double zeta;
    private final double alpha = 1.0 / (1.0 - THETA);
    private final double eta;
    private double elapsed;
    private String user;
    private long time;
    private String json;

    Generator(long seed, int users) {
        this.random = new SplittableRandom(seed);
        this.users = users;
        double sum = 0;
        for (int rank = 1; rank <= users; rank++) {
            sum += 1 / Math.pow(rank, THETA);
        }
        zeta = sum;
        eta = (1 - Math.pow(2.0 / users, 1 - THETA)) / (1 - (1 + Math.pow(0.5, THETA)) / zeta);
    }

    /** Zipf by the method of Gray et al., "Quickly generating billion-record synthetic databases". */
    private long rank() {
        double u = random.nextDouble();
        double scaled = u * zeta;
        if (scaled < 1) {
            return 0;
        }
        if (scaled < 1 + Math.pow(0.5, THETA)) {
            return 1;
        }
        return Math.min(users - 1, (long) (users * Math.pow(eta * u - eta + 1, alpha)));
    }

    private double gaussian() {
        double radius = Math.sqrt(-2 * Math.log(1 - random.nextDouble()));
        return radius * Math.cos(2 * Math.PI * random.nextDouble());
    }

    void next() {
        user = padded('u', (rank() * SPREAD + 123_457) % users, 7);
        elapsed -= Math.log(1 - random.nextDouble()) * MEAN_DISTANCE_MS;
        // Most events are a little out of order, some by up to two seconds.
        long jitter = random.nextInt(10) == 0 ? random.nextInt(2001) : random.nextInt(51);
        time = START + (long) elapsed - jitter;
        long cents = 1 + (long) (Math.exp(3 + 1.2 * gaussian()) * 100);
        String id = HexFormat.of().toHexDigits(random.nextLong());
        int address = random.nextInt();
        json = "{\"metadata\":{\"event_id\":\"" + id + "\",\"timestamp\":" + time
            + "},\"payload\":{\"user_id\":\"" + user + "\",\"amount\":" + cents / 100 + padded('.', cents % 100, 2)
            + ",\"merchant\":\"" + padded('m', random.nextInt(100_000), 5)
            + "\",\"country\":\"" + COUNTRIES[random.nextInt(COUNTRIES.length)]
            + "\",\"kyc\":" + (random.nextInt(10) != 0)
            + "},\"context\":{\"ip\":\"10." + (address & 255) + "." + (address >> 8 & 255) + "." + (address >> 16 & 255)
            + "\",\"device\":\"" + padded('d', random.nextInt(1_000_000), 6) + "\"}}";
    }

    private static String padded(char first, long number, int width) {
        String digits = Long.toString(number);
        return first + "0".repeat(Math.max(0, width - digits.length())) + digits;
    }

    byte[] key() {
        return user.getBytes(StandardCharsets.US_ASCII);
    }

    byte[] json() {
        return json.getBytes(StandardCharsets.US_ASCII);
    }

    long time() {
        return time;
    }
}
