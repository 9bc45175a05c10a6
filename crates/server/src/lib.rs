//! wardian-server
