"""A growth event measured again after the fact, by other code than that which made it."""
