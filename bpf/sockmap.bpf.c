// Bytes between the application's socket and the sidecar's, without TCP, netfilter and loopback between them.
//
// sockops: an established socket of this pod that is one end of such a pair goes into `sockets`, under the key of its
// own connection, and gets a `flow`: the direction in which it sends. sk_msg: what it sends goes straight to the
// socket of the reversed key. Exact, because the path of a direction is chosen at its first byte and may later change
// only from the short cut to TCP, once: a receiver reads what was redirected before what came by TCP. Bounded, because
// no more than WINDOW bytes beyond what user space has seen consumed are ever redirected.
#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10
#define WINDOW (512 * 1024)
#define BORROWED 32768 // the sidecar dials the application from ports below this one
#define FLOWS 65536
#define LEAVE (1ULL << 63) // user space wants the flow by TCP, to splice it

struct key { // one socket's view of its connection; IPv4 is ::ffff:a.b.c.d
	__u64 netns;
	__u32 local[4], remote[4];
	__u16 local_port, remote_port;
	__u32 zero;
};

struct flow { // one direction: what was redirected, whether it is TCP's for good, whether the sidecar sends it
	__u64 redirected;
	__u32 off, own;
};

struct settings {
	__u64 netns;
	__u32 mark, mask; // of the sidecar's own sockets
};

struct inet_connection_sock {
	const void *icsk_ulp_ops;
} __attribute__((preserve_access_index));

struct tcp_sock {
	struct inet_connection_sock inet_conn;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, FLOWS);
	__type(key, struct key);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, struct flow);
} flows SEC(".maps");

struct { // bytes that the receiver of a flow has consumed; written by user space only
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key);
	__type(value, __u64);
} consumed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} config SEC(".maps");

#define FILL(key, ctx)                                                                                                 \
	do {                                                                                                           \
		(key)->netns = bpf_get_netns_cookie(ctx);                                                              \
		(key)->local_port = (ctx)->local_port;                                                                 \
		(key)->remote_port = bpf_ntohl((ctx)->remote_port);                                                    \
		if ((ctx)->family == AF_INET6) {                                                                       \
			(key)->local[0] = (ctx)->local_ip6[0], (key)->local[1] = (ctx)->local_ip6[1];                  \
			(key)->local[2] = (ctx)->local_ip6[2], (key)->local[3] = (ctx)->local_ip6[3];                  \
			(key)->remote[0] = (ctx)->remote_ip6[0], (key)->remote[1] = (ctx)->remote_ip6[1];              \
			(key)->remote[2] = (ctx)->remote_ip6[2], (key)->remote[3] = (ctx)->remote_ip6[3];              \
			asm volatile("" ::: "memory"); /* no common tail: the verifier knows no computed fields */    \
		} else {                                                                                               \
			(key)->local[2] = (key)->remote[2] = bpf_htonl(0xffff);                                        \
			(key)->local[3] = (ctx)->local_ip4, (key)->remote[3] = (ctx)->remote_ip4;                      \
		}                                                                                                      \
	} while (0)

static __always_inline void reverse(struct key *to, const struct key *from)
{
	to->netns = from->netns, to->zero = 0;
	__builtin_memcpy(to->local, from->remote, 16);
	__builtin_memcpy(to->remote, from->local, 16);
	to->local_port = from->remote_port, to->remote_port = from->local_port;
}

SEC("sockops")
int established(struct bpf_sock_ops *ctx)
{
	__u32 zero = 0, op = ctx->op;
	struct settings *own = bpf_map_lookup_elem(&config, &zero);
	struct bpf_sock *sock = ctx->sk;
	struct key key = {}, other;
	struct flow flow = {}, *dialled;
	__u64 none = 0;

	if (!own || !sock || (ctx->family != AF_INET && ctx->family != AF_INET6))
		return 1;
	if (op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB &&
	    !(op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE))
		return 1;
	FILL(&key, ctx);
	if (key.netns != own->netns)
		return 1; // another pod's
	if (op == BPF_SOCK_OPS_STATE_CB) {
		bpf_map_delete_elem(&flows, &key);
		bpf_map_delete_elem(&consumed, &key);
		return 1;
	}
	flow.own = (sock->mark & own->mask) == own->mark;
	if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) { // who dialled is there already, and is the other one of a pair
		reverse(&other, &key);
		dialled = bpf_map_lookup_elem(&flows, &other);
		if (!dialled || dialled->own == flow.own)
			return 1;
	} else if (flow.own && key.local_port >= BORROWED) {
		return 1; // the sidecar's connection to the network
	}
	if (ctx->snd_nxt != ctx->snd_una)
		return 1; // TCP Fast Open: the first bytes are TCP's already
	if (bpf_map_update_elem(&consumed, &key, &none, BPF_ANY) || bpf_map_update_elem(&flows, &key, &flow, BPF_ANY))
		return 1;
	if (bpf_sock_hash_update(ctx, &sockets, &key, BPF_ANY)) {
		bpf_map_delete_elem(&flows, &key);
		return 1;
	}
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return 1;
}

SEC("sk_msg")
int send(struct sk_msg_md *msg)
{
	struct key key = {}, other;
	struct flow *flow;
	__u64 *seen, limit = WINDOW;
	struct bpf_sock *sock = msg->sk;
	struct tcp_sock *tcp = sock ? bpf_skc_to_tcp_sock(sock) : NULL;

	FILL(&key, msg);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!tcp || !flow || flow->off)
		return SK_PASS;
	seen = bpf_map_lookup_elem(&consumed, &key);
	if (seen)
		limit = *seen & LEAVE ? 0 : limit + *seen;
	reverse(&other, &key);
	if (tcp->inet_conn.icsk_ulp_ops || // kTLS encrypts below us: what we see is not what the other side must read
	    flow->redirected + msg->size > limit ||
	    bpf_msg_redirect_hash(msg, &sockets, &other, BPF_F_INGRESS) != SK_PASS) {
		flow->off = 1; // for good
		return SK_PASS;
	}
	flow->redirected += msg->size;
	return SK_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
