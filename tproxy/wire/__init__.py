"""Messages and methods of Istio's CA API, the SPIFFE Workload API, and our own two (see ``make wire``)."""

CREATE_CERTIFICATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
FETCH_X509_SVID = "/SpiffeWorkloadAPI/FetchX509SVID"
FETCH_X509_BUNDLES = "/SpiffeWorkloadAPI/FetchX509Bundles"
WORKLOAD_HEADER = ("workload.spiffe.io", "true")  # metadata without which a Workload API answers InvalidArgument
WATCH_DIRECTORY = "/tproxy.v1.Directory/Watch"
WATCH_POLICIES = "/tproxy.v1.Policies/Watch"
ACCEPTED = ("tproxy-accepted", "1")  # initial metadata of a stream that is not refused
