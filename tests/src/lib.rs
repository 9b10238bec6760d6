//! A harness for clusters, processes and clients, and the tests named by behaviour.
