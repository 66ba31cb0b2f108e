"""The conservation gallery: what six ways to step through time keep of four mechanical systems, in double precision."""
