//! What the control plane counts.

use std::time::Duration;

use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::store::{Counts, MoveCounts};

/// The control plane's series.
pub(crate) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    up: IntGauge,
    version: IntGauge,
    objects: IntGaugeVec,
    moves: IntGaugeVec,
    pauses: IntGaugeVec,
    moved: IntGaugeVec,
    retained: IntGaugeVec,
}

impl Metrics {
    pub(crate) fn new() -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new("switchyard_control_plane_requests_total", "Requests answered."),
            &["method", "route", "status"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new("switchyard_control_plane_request_seconds", "Time to answer a request.")
                .buckets(vec![0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]),
            &["route"],
        )?;
        let up = IntGauge::new("switchyard_catalog_up", "Whether the catalog answers.")?;
        let version = IntGauge::new("switchyard_catalog_version", "Version of the topology in the catalog.")?;
        let objects = IntGaugeVec::new(
            Opts::new("switchyard_catalog_objects", "How much the catalog holds."),
            &["kind"],
        )?;
        let moves = IntGaugeVec::new(
            Opts::new(
                "switchyard_moves",
                "Moves that the catalog has, by phase, or by outcome if they are done.",
            ),
            &["state"],
        )?;
        let pauses = IntGaugeVec::new(
            Opts::new("switchyard_move_pauses", "Moves in which no client waited for longer than `ms`."),
            &["ms"],
        )?;
        let moved = IntGaugeVec::new(
            Opts::new("switchyard_moved", "What moves have taken to another shard: tenants, rows, bytes."),
            &["what"],
        )?;
        let build = IntGaugeVec::new(
            Opts::new("switchyard_build_info", "The version that runs; always 1."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let registry = Registry::new();
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(up.clone()))?;
        registry.register(Box::new(version.clone()))?;
        registry.register(Box::new(objects.clone()))?;
        registry.register(Box::new(build))?;
        let retained = IntGaugeVec::new(
            Opts::new(
                "switchyard_move_log_bytes",
                "Log that a source retains for moves: what is retained, and the most.",
            ),
            &["shard", "database", "what"],
        )?;
        for series in [&moves, &pauses, &moved, &retained] {
            registry.register(Box::new(series.clone()))?;
        }
        Ok(Self { registry, requests, seconds, up, version, objects, moves, pauses, moved, retained })
    }

    /// Counts an answer. `route` is none for a path that we do not serve.
    pub(crate) fn request(&self, method: &str, route: Option<&str>, status: u16, took: Duration) {
        let known = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"];
        // A client may send any word for a method; it must not become a series.
        let method = if known.contains(&method) { method } else { "other" };
        let route = route.unwrap_or("other");
        self.requests.with_label_values(&[method, route, &status.to_string()]).inc();
        self.seconds.with_label_values(&[route]).observe(took.as_secs_f64());
    }

    /// What the catalog has of moves.
    pub(crate) fn moves(&self, counts: &MoveCounts) {
        // A state that no move is in any more must not keep its last number.
        self.moves.reset();
        for (state, n) in &counts.by_state {
            self.moves.with_label_values(&[state]).set(*n);
        }
        for (ms, n) in &counts.within_ms {
            self.pauses.with_label_values(&[&ms.to_string()]).set(*n);
        }
        for (what, n) in
            [("tenants", counts.moved), ("rows", counts.rows as i64), ("bytes", counts.bytes as i64)]
        {
            self.moved.with_label_values(&[what]).set(n);
        }
        self.retained.reset();
        for stream in &counts.streams {
            for (what, n) in [("retained", stream.retained), ("budget", stream.budget)] {
                self.retained.with_label_values(&[&stream.shard, &stream.database, what]).set(n);
            }
        }
    }

    /// All series, in Prometheus's text format.
    pub(crate) fn text(&self, counts: Option<&Counts>) -> String {
        self.up.set(counts.is_some().into());
        if let Some(counts) = counts {
            self.version.set(counts.version);
            for (kind, n) in [
                ("shards", counts.shards),
                ("tenants", counts.tenants),
                ("suspended_tenants", counts.suspended),
                ("placements", counts.placements),
                ("users", counts.users),
            ] {
                self.objects.with_label_values(&[kind]).set(n);
            }
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}
