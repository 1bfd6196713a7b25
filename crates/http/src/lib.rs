//! Both protocols over HTTP: wire types, routes, errors, the server loop.
