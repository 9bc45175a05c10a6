//! wardian-store
