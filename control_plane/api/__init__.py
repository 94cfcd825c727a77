"""REST routers, one file for each resource. They translate between HTTP and the domain, and decide nothing."""
