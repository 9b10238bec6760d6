//! The catalog as its readers see it: snapshot, change feed, and the one place that knows its tables.
