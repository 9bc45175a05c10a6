//! wardian-network
