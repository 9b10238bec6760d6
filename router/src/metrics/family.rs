//! Families of series and their samples, as the encoder wants them.

use std::collections::HashMap;

use prometheus::core::Desc;
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use crate::stats::{BOUNDS_US, Histogram};

/// The name, type and meaning of one family.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// The types that we have. The encoder's own is not usable in constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Family {
    /// What the registry asks for. Labels are left out: they are set with each sample.
    pub(super) fn describe(&self) -> prometheus::Result<Desc> {
        Desc::new(self.name.to_owned(), self.help.to_owned(), Vec::new(), HashMap::new())
    }

    /// A page's samples of this family, to be filled in.
    pub(super) fn samples(&self) -> Samples {
        Samples { family: *self, metrics: Vec::new() }
    }

    /// A family with one sample that has no labels.
    pub(super) fn single(&self, value: f64) -> MetricFamily {
        let mut samples = self.samples();
        samples.add(&[], value);
        samples.finish()
    }
}

/// The samples of one family.
pub(super) struct Samples {
    family: Family,
    metrics: Vec<Metric>,
}

impl Samples {
    /// Adds a sample of a counter or gauge.
    pub(super) fn add(&mut self, labels: &[(&str, &str)], value: f64) {
        let mut metric = labelled(labels);
        match self.family.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            Kind::Histogram => debug_assert!(false, "{} is a histogram", self.family.name),
        }
        self.metrics.push(metric);
    }

    /// Adds a histogram.
    pub(super) fn add_histogram(&mut self, labels: &[(&str, &str)], durations: &Durations) {
        debug_assert_eq!(self.family.kind, Kind::Histogram, "{}", self.family.name);
        let mut histogram = proto::Histogram::default();
        let mut so_far = 0;
        let mut buckets = Vec::with_capacity(BOUNDS_US.len());
        for (bound, count) in BOUNDS_US.iter().zip(&durations.counts) {
            so_far += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_cumulative_count(so_far);
            bucket.set_upper_bound(*bound as f64 / 1e6);
            buckets.push(bucket);
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(durations.counts.iter().sum());
        histogram.set_sample_sum(seconds(durations.sum_us));
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    pub(super) fn finish(self) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.family.name.to_owned());
        family.set_help(self.family.help.to_owned());
        family.set_field_type(match self.family.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(self.metrics);
        family
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}

/// The contents of one or several [`Histogram`]s.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Durations {
    counts: [u64; BOUNDS_US.len() + 1],
    sum_us: u64,
}

impl Durations {
    pub(super) fn add(&mut self, histogram: &Histogram) {
        let (counts, sum_us) = histogram.read();
        self.merge(&Self { counts, sum_us });
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (to, from) in self.counts.iter_mut().zip(other.counts) {
            *to += from;
        }
        self.sum_us += other.sum_us;
    }
}

/// Microseconds in seconds.
pub(super) fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
