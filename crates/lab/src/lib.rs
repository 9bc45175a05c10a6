//! wardian-lab
