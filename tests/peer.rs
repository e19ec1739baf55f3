//! The service that this one replaces reads what this one uploads, and the other way round.
