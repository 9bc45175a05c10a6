//! wardian-runtime
