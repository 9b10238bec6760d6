//! How clients prove themselves.

pub mod jwt;
