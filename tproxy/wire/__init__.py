"""Messages and methods that others defined: Istio's CA API and the SPIFFE Workload API (see ``make wire``)."""

CREATE_CERTIFICATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
FETCH_X509_SVID = "/SpiffeWorkloadAPI/FetchX509SVID"
FETCH_X509_BUNDLES = "/SpiffeWorkloadAPI/FetchX509Bundles"
WORKLOAD_HEADER = ("workload.spiffe.io", "true")  # metadata without which a Workload API answers InvalidArgument
