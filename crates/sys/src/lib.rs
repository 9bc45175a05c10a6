//! wardian-sys
