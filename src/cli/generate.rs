//! `thalweg generate`: made-up events, the same for the same seed.

use std::io::{BufWriter, Write};

use clap::{Args, Subcommand};
use serde_json::json;
use thalweg::model::time::{format_rfc3339, parse_rfc3339};

use super::{Failure, Outcome};

/// What can be generated.
#[derive(Subcommand)]
pub enum Generator {
    /// Card transactions for the example `fraud`
    Fraud(FraudArguments),
}

/// Arguments of `generate fraud`.
#[derive(Args)]
pub struct FraudArguments {
    /// How many events
    #[arg(long)]
    events: u64,
    /// Seed of all chance
    #[arg(long)]
    seed: u64,
    /// Events per second of event time
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// Share of events that are late
    #[arg(long, default_value_t = 0.0)]
    late: f64,
    /// Share of events that are sent again
    #[arg(long, default_value_t = 0.0)]
    duplicate: f64,
    /// Share of events that cannot be used
    #[arg(long, default_value_t = 0.0)]
    malformed: f64,
    /// Users
    #[arg(long, default_value_t = 1_000_000)]
    users: u64,
    /// Event time of the first event, RFC 3339
    #[arg(long, default_value = "2026-01-01T00:00:00Z")]
    start: String,
}

/// Steele, Lea, Flood: *Fast splittable pseudorandom number generators* (2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.unit() * n as f64) as u64
    }

    fn pick<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len() as u64) as usize]
    }
}

/// Ranks 1 to n with weights rank^−s, by rejection from the inverse of the integral (Hörmann and
/// Derflinger, 1996).
struct Zipf {
    n: f64,
    s: f64,
    at_half: f64,
    at_end: f64,
}

impl Zipf {
    fn new(n: u64, s: f64) -> Self {
        let integral = |x: f64| (x.powf(1.0 - s) - 1.0) / (1.0 - s);
        Self { n: n as f64, s, at_half: integral(1.5) - 1.0, at_end: integral(n as f64 + 0.5) }
    }

    fn sample(&self, random: &mut SplitMix) -> u64 {
        let integral = |x: f64| (x.powf(1.0 - self.s) - 1.0) / (1.0 - self.s);
        let inverse = |y: f64| (1.0 + y * (1.0 - self.s)).powf(1.0 / (1.0 - self.s));
        loop {
            let u = self.at_end + random.unit() * (self.at_half - self.at_end);
            let x = inverse(u);
            let rank = x.round().clamp(1.0, self.n);
            if u >= integral(rank + 0.5) - rank.powf(-self.s) {
                return rank as u64;
            }
        }
    }
}

const CATEGORIES: [&str; 8] =
    ["grocery", "restaurant", "travel", "electronics", "fashion", "gaming", "health", "utilities"];
const CURRENCIES: [&str; 4] = ["EUR", "USD", "GBP", "CHF"];
const TYPES: [&str; 4] = ["PURCHASE", "PURCHASE", "PURCHASE", "REFUND"];

/// Writes events to standard output.
pub fn generate(what: &Generator) -> Outcome {
    let Generator::Fraud(arguments) = what;
    let start = parse_rfc3339(&arguments.start, None)
        .ok_or_else(|| Failure::Input(format!("error: --start {} is no RFC 3339 time", arguments.start)))?;
    for (name, share) in
        [("late", arguments.late), ("duplicate", arguments.duplicate), ("malformed", arguments.malformed)]
    {
        if !(0.0..=1.0).contains(&share) {
            return Err(Failure::Input(format!("error: --{name} {share} is not between 0 and 1")));
        }
    }
    if arguments.rate.is_nan() || arguments.rate <= 0.0 || arguments.users == 0 {
        return Err(Failure::Input("error: --rate and --users must be above zero".to_owned()));
    }
    let mut out = BufWriter::with_capacity(1 << 20, std::io::stdout().lock());
    match write_events(arguments, start, &mut out) {
        // A reader that has seen enough is no failure.
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Engine(format!("error: standard output: {e}")))
        }
        _ => Ok(()),
    }
}

fn write_events(arguments: &FraudArguments, start: i64, out: &mut impl Write) -> std::io::Result<()> {
    let mut random = SplitMix(arguments.seed);
    let users = Zipf::new(arguments.users, 0.99);
    let merchants = Zipf::new(20_000, 0.99);
    let mut recent: Vec<String> = Vec::new();
    for index in 0..arguments.events {
        let chance = random.unit();
        if chance < arguments.duplicate && !recent.is_empty() {
            let at = random.below(recent.len() as u64) as usize;
            writeln!(out, "{}", recent[at])?;
            continue;
        }
        // Arrival is in order of a steady clock; event time lags by up to two seconds.
        let mut time = start + (index as f64 * 1000.0 / arguments.rate) as i64 - random.below(2000) as i64;
        if random.unit() < arguments.late {
            time -= 900_000 + random.below(3_600_000) as i64;
        }
        let line = if random.unit() < arguments.malformed {
            malformed(&mut random, index, time)
        } else {
            event(&mut random, &users, &merchants, arguments.seed, index, time)
        };
        writeln!(out, "{line}")?;
        if recent.len() < 1000 {
            recent.push(line);
        } else {
            let at = (index % 1000) as usize;
            recent[at] = line;
        }
    }
    out.flush()
}

fn event(random: &mut SplitMix, users: &Zipf, merchants: &Zipf, seed: u64, index: u64, time: i64) -> String {
    let user = users.sample(random);
    let merchant = merchants.sample(random);
    // Amounts in cents, most of them small.
    let amount = (-(1.0 - random.unit()).ln() * 4500.0).floor() / 100.0 + 0.5;
    json!({
        "metadata": {
            "event_id": format!("{seed:x}-{index:x}"),
            "timestamp": format_rfc3339(time),
            "source": "cards",
            "version": 1,
        },
        "payload": {
            "user_id": format!("u{user}"),
            "event_type": random.pick(&TYPES),
            "properties": {
                "amount": amount,
                "currency": CURRENCIES[(user % 4) as usize],
                "merchant": format!("m{merchant}"),
                "merchant_category": CATEGORIES[(merchant % 8) as usize],
                "channel": if random.unit() < 0.6 { "online" } else { "pos" },
                "kyc": user % 10 != 0,
            },
        },
        "context": {
            "device": random.pick(&["ios", "android", "web", "terminal"]),
            "location": random.pick(&["DE", "FR", "US", "GB", "CH", "BR"]),
        },
    })
    .to_string()
}

fn malformed(random: &mut SplitMix, index: u64, time: i64) -> String {
    let time = format_rfc3339(time);
    match random.below(4) {
        0 => "{\"metadata\":{\"event_id\":".to_owned(),
        1 => json!({"metadata": {"event_id": format!("x{index}"), "timestamp": time}, "payload": {}})
            .to_string(),
        2 => json!({"metadata": {"event_id": format!("x{index}"), "timestamp": "yesterday"}}).to_string(),
        _ => "[1, 2, 3]".to_owned(),
    }
}
