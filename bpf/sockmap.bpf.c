// Bytes between the application's socket and the sidecar's, without TCP, netfilter and loopback between them.
//
// sockops: an established socket of this pod that is one end of such a pair goes into `apps` or `owns`, under the key
// of its own connection, and gets a `flow`: the direction in which it sends. sk_msg: what it sends goes straight to the
// socket of the reversed key. Exact, because nothing is redirected once TCP has carried a byte of that direction, or
// its end: a receiver reads what was redirected before what came by TCP. Bounded, because no more than WINDOW bytes
// beyond what user space has seen consumed are ever redirected. An application's socket receives nothing this way
// unless `send` is attached to `owns` too; core/settings.py says what such an application may not do.
#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define SOL_SOCKET 1
#define SO_ZEROCOPY 60
#define TCP_ULP 31
#define TCP 6
#define PAGE 4096
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
	__u32 start; // TCP's number of the first byte: as long as it is the next one, TCP has carried nothing
	__u32 zero;
};

struct settings {
	__u64 netns;
	__u32 mark, mask; // of the sidecar's own sockets
	__u32 both; // `send` is attached to `owns` too
	__u32 port; // during the self-test: of its sockets, which alone take part
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct sock_common {
	unsigned long skc_flags;
};

struct sock {
	struct sock_common __sk_common;
};

struct inet_sock {
	struct sock sk;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	const void *icsk_ulp_ops;
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 write_seq;
};
#pragma clang attribute pop

enum sock_flags { SOCK_ZEROCOPY = 18 }; // relocated

struct sockets {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, FLOWS);
	__type(key, struct key);
	__type(value, __u64);
} apps SEC(".maps"), owns SEC(".maps");

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

static __always_inline void forget(const struct key *key)
{
	bpf_map_delete_elem(&flows, key);
	bpf_map_delete_elem(&consumed, key);
}

SEC("sockops")
int established(struct bpf_sock_ops *ctx)
{
	__u32 zero = 0, op = ctx->op;
	struct settings *own = bpf_map_lookup_elem(&config, &zero);
	struct bpf_sock *sock = ctx->sk;
	struct key key = {}, other;
	struct tcp_sock *tcp = sock ? bpf_skc_to_tcp_sock(sock) : NULL;
	struct flow flow = {}, *dialled;
	__u64 none = 0;

	if (!own || !tcp || (ctx->family != AF_INET && ctx->family != AF_INET6))
		return 1;
	if (op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB &&
	    !(op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == BPF_TCP_CLOSE))
		return 1;
	FILL(&key, ctx);
	if (key.netns != own->netns || (own->port && own->port != key.local_port && own->port != key.remote_port))
		return 1; // another pod's, or one that must not notice the self-test
	reverse(&other, &key);
	if (op == BPF_SOCK_OPS_STATE_CB) { // the last of a pair takes along what the other one may have to be asked about
		struct flow *sent = bpf_map_lookup_elem(&flows, &key), *back = bpf_map_lookup_elem(&flows, &other);

		if (!sent || !back || !sent->redirected)
			forget(&key);
		forget(&other);
		return 1;
	}
	flow.own = (sock->mark & own->mask) == own->mark;
	if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) { // who dialled is there already, and is the other one of a pair
		dialled = bpf_map_lookup_elem(&flows, &other);
		if (!dialled || dialled->own == flow.own)
			return 1;
	} else if (flow.own && key.local_port >= BORROWED) {
		return 1; // the sidecar's connection to the network
	}
	flow.start = tcp->write_seq;
	if (flow.start != ctx->snd_una)
		return 1; // TCP Fast Open: the first bytes are TCP's already
	if (tcp->inet_conn.icsk_inet.sk.__sk_common.skc_flags & 1UL << bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY))
		return 1; // see `refuse`
	if (bpf_map_update_elem(&flows, &key, &flow, BPF_ANY))
		return 1;
	if (bpf_map_update_elem(&consumed, &key, &none, BPF_ANY) ||
	    (flow.own ? bpf_sock_hash_update(ctx, &owns, &key, BPF_ANY) :
			bpf_sock_hash_update(ctx, &apps, &key, BPF_ANY))) {
		forget(&key);
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
	if (tcp->write_seq != flow->start || // a thread that waited for the connection, a shutdown, a splice to it
	    tcp->inet_conn.icsk_ulp_ops || // kTLS encrypts below us: what we see is not what the other side must read
	    flow->redirected + msg->size > limit ||
	    (flow->own ? bpf_msg_redirect_hash(msg, &apps, &other, BPF_F_INGRESS) :
			 bpf_msg_redirect_hash(msg, &owns, &other, BPF_F_INGRESS)) != SK_PASS) {
		flow->off = 1; // for good
		return SK_PASS;
	}
	flow->redirected += msg->size;
	return SK_PASS;
}

// A socket in a sockhash never reports that what it sent with MSG_ZEROCOPY may be used again, and one with kTLS takes
// what was redirected to it for plaintext. Applications must be ready for a kernel that has neither.
SEC("cgroup/setsockopt")
int refuse(struct bpf_sockopt *ctx)
{
	__u32 zero = 0;
	struct settings *own = bpf_map_lookup_elem(&config, &zero);

	if (ctx->optlen > PAGE)
		ctx->optlen = 0; // what we cannot see is taken as it is
	if (!own || !ctx->sk || ctx->sk->protocol != TCP || bpf_get_netns_cookie(ctx) != own->netns)
		return 1;
	return !(ctx->level == SOL_SOCKET && ctx->optname == SO_ZEROCOPY) &&
	       !(ctx->level == TCP && ctx->optname == TCP_ULP && own->both);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
