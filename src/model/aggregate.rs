//! What a feature can compute, and the calendar units it can start at.

/// What a feature computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Aggregate {
    /// Number of events.
    Count,
    /// Sum.
    Sum,
    /// Mean.
    Mean,
    /// Sample variance.
    Variance,
    /// Sample deviation.
    Stddev,
    /// Variance of the population.
    VariancePop,
    /// Deviation of the population.
    StddevPop,
    /// Least.
    Min,
    /// Greatest.
    Max,
    /// First in order.
    First,
    /// Last in order.
    Last,
    /// The last k.
    LastK,
    /// Number of different values.
    Distinct,
    /// Different values.
    DistinctValues,
    /// Most frequent values.
    TopK,
    /// Counts by value.
    ValueCounts,
    /// Counts by interval.
    Histogram,
    /// Quantile.
    Percentile,
    /// The 0.5 quantile.
    Median,
    /// Events per unit of time.
    Rate,
    /// Seconds since the first event.
    TimeSinceFirst,
    /// Seconds since the last event.
    TimeSinceLast,
    /// Exponentially decayed sum.
    DecayedSum,
    /// Exponentially decayed count.
    DecayedCount,
    /// Number of sessions.
    SessionCount,
    /// Seconds of the current session.
    SessionDuration,
}

impl Aggregate {
    /// Whether its answer needs every event of the window, however many.
    pub fn needs_all_values(self) -> bool {
        matches!(
            self,
            Self::Distinct
                | Self::DistinctValues
                | Self::TopK
                | Self::ValueCounts
                | Self::Percentile
                | Self::Median
        )
    }

    /// All, by name.
    pub const NAMES: [(&'static str, Self); 26] = [
        ("count", Self::Count),
        ("sum", Self::Sum),
        ("mean", Self::Mean),
        ("variance", Self::Variance),
        ("stddev", Self::Stddev),
        ("variance_pop", Self::VariancePop),
        ("stddev_pop", Self::StddevPop),
        ("min", Self::Min),
        ("max", Self::Max),
        ("first", Self::First),
        ("last", Self::Last),
        ("last_k", Self::LastK),
        ("distinct", Self::Distinct),
        ("distinct_values", Self::DistinctValues),
        ("top_k", Self::TopK),
        ("value_counts", Self::ValueCounts),
        ("histogram", Self::Histogram),
        ("percentile", Self::Percentile),
        ("median", Self::Median),
        ("rate", Self::Rate),
        ("time_since_first", Self::TimeSinceFirst),
        ("time_since_last", Self::TimeSinceLast),
        ("decayed_sum", Self::DecayedSum),
        ("decayed_count", Self::DecayedCount),
        ("session_count", Self::SessionCount),
        ("session_duration", Self::SessionDuration),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, a)| *a == self).map_or("", |(name, _)| name)
    }

    /// Keys that only some aggregates take, for this one.
    pub fn own_keys(self) -> &'static [&'static str] {
        match self {
            Self::LastK => &["k"],
            Self::TopK => &["k", "exact_limit"],
            Self::DistinctValues | Self::ValueCounts => &["limit", "exact_limit"],
            Self::Distinct | Self::Median => &["exact_limit"],
            Self::Percentile => &["q", "exact_limit"],
            Self::Histogram => &["bounds"],
            Self::Rate => &["per"],
            Self::DecayedSum | Self::DecayedCount => &["half_life"],
            Self::SessionCount => &["gap"],
            Self::SessionDuration => &["gap", "max"],
            _ => &[],
        }
    }

    /// Whether `of` may be left out.
    pub fn may_lack_of(self) -> bool {
        matches!(
            self,
            Self::Count
                | Self::Rate
                | Self::TimeSinceFirst
                | Self::TimeSinceLast
                | Self::DecayedCount
                | Self::SessionCount
                | Self::SessionDuration
        )
    }
}

/// A calendar unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CalendarUnit {
    /// From minute 0.
    Hour,
    /// From midnight.
    Day,
    /// From Monday.
    Week,
    /// From the first.
    Month,
}
