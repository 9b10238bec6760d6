//! Of the ledger.
