//! wardian-garden
