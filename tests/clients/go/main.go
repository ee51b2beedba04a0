// A session of Go's clientv3 against one server: plain calls, then the
// concurrency package (session, mutex, election, STM). Ends with status 1 at
// the first thing that is not as etcd answers it.
//
//	STELE_ENDPOINT=127.0.0.1:2379 go run .
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

// Longest time the whole program may take; nothing here waits for more than a lease of two seconds.
const programTimeout = 60 * time.Second

func main() {
	endpoint := os.Getenv("STELE_ENDPOINT")
	if endpoint == "" {
		endpoint = "127.0.0.1:2379"
	}
	ctx, cancel := context.WithTimeout(context.Background(), programTimeout)
	defer cancel()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		DialTimeout: 5 * time.Second,
		Context:     ctx,
		Logger:      zap.NewNop(), // it would report every error that a step asks for
	})
	must(err)
	defer client.Close()

	steps := []struct {
		name string
		run  func(context.Context, *clientv3.Client)
	}{
		{"put, get, delete", putGetDelete},
		{"pages", pages},
		{"txn", txn},
		{"watch", watch},
		{"watch of compacted history", watchCompacted},
		{"lease", lease},
		{"session and mutex", mutex},
		{"election", election},
		{"stm", stm},
		{"status and members", status},
	}
	for _, step := range steps {
		step.run(ctx, client)
		fmt.Println("ok", step.name)
	}
	fmt.Printf("go client: %d of %d passed\n", len(steps), len(steps))
}

func putGetDelete(ctx context.Context, client *clientv3.Client) {
	first, err := client.Put(ctx, "kv/a", "1")
	must(err)
	second, err := client.Put(ctx, "kv/a", "2", clientv3.WithPrevKV())
	must(err)
	check(second.Header.Revision == first.Header.Revision+1, "a put makes one revision: %v, %v", first.Header, second.Header)
	check(string(second.PrevKv.Value) == "1", "previous value: %v", second.PrevKv)

	got, err := client.Get(ctx, "kv/a")
	must(err)
	check(len(got.Kvs) == 1 && string(got.Kvs[0].Value) == "2" && got.Kvs[0].Version == 2, "get: %v", got)
	check(got.Kvs[0].CreateRevision == first.Header.Revision, "create revision: %v", got.Kvs[0])
	check(got.Kvs[0].ModRevision == second.Header.Revision, "mod revision: %v", got.Kvs[0])
	check(got.Header.ClusterId != 0 && got.Header.MemberId != 0 && got.Header.RaftTerm >= 1, "header: %v", got.Header)

	old, err := client.Get(ctx, "kv/a", clientv3.WithRev(first.Header.Revision))
	must(err)
	check(string(old.Kvs[0].Value) == "1", "get at an older revision: %v", old)

	_, err = client.Get(ctx, "kv/a", clientv3.WithRev(second.Header.Revision+1000))
	check(errors.Is(err, rpctypes.ErrFutureRev), "a future revision: %v", err)
	_, err = client.Put(ctx, "", "value")
	check(errors.Is(err, rpctypes.ErrEmptyKey), "an empty key: %v", err)

	deleted, err := client.Delete(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	must(err)
	check(deleted.Deleted == 1 && string(deleted.PrevKvs[0].Value) == "2", "delete: %v", deleted)
	got, err = client.Get(ctx, "kv/a")
	must(err)
	check(got.Count == 0, "get after delete: %v", got)
}

func pages(ctx context.Context, client *clientv3.Client) {
	for i := range 10 {
		_, err := client.Put(ctx, fmt.Sprintf("page/%02d", i), fmt.Sprint(i))
		must(err)
	}
	first, err := client.Get(ctx, "page/", clientv3.WithPrefix(), clientv3.WithLimit(4))
	must(err)
	check(len(first.Kvs) == 4 && first.More && first.Count == 10, "first page: %v", first)
	from := string(first.Kvs[3].Key) + "\x00"
	rest, err := client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd("page/")), clientv3.WithRev(first.Header.Revision))
	must(err)
	check(len(rest.Kvs) == 6 && !rest.More && rest.Count == 6, "second page: %v", rest)
	last, err := client.Get(ctx, "page/", clientv3.WithLastCreate()...)
	must(err)
	check(string(last.Kvs[0].Key) == "page/09", "last created: %v", last)
	count, err := client.Get(ctx, "page/", clientv3.WithPrefix(), clientv3.WithCountOnly())
	must(err)
	check(count.Count == 10 && len(count.Kvs) == 0, "count: %v", count)
}

func txn(ctx context.Context, client *clientv3.Client) {
	create := func(value string) *clientv3.TxnResponse {
		response, err := client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision("txn/a"), "=", 0)).
			Then(clientv3.OpPut("txn/a", value)).
			Else(clientv3.OpGet("txn/a")).
			Commit()
		must(err)
		return response
	}
	check(create("first").Succeeded, "create of an absent key")
	again := create("second")
	check(!again.Succeeded, "create of a present key: %v", again)
	present := again.Responses[0].GetResponseRange().Kvs[0]
	check(string(present.Value) == "first", "the other branch: %v", again)

	nested, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision("txn/a"), "=", present.ModRevision)).
		Then(
			clientv3.OpPut("txn/a", "third"),
			clientv3.OpTxn(
				[]clientv3.Cmp{clientv3.Compare(clientv3.Value("txn/a"), "=", "first")},
				[]clientv3.Op{clientv3.OpPut("txn/b", "nested"), clientv3.OpGet("txn/a")},
				nil,
			),
		).Commit()
	must(err)
	inner := nested.Responses[1].GetResponseTxn()
	check(nested.Succeeded && inner.Succeeded, "nested txn: %v", nested)
	check(string(inner.Responses[1].GetResponseRange().Kvs[0].Value) == "third", "a later operation sees the earlier put: %v", inner)
	check(inner.Responses[0].GetResponsePut().Header.Revision == nested.Header.Revision, "one revision for the whole txn: %v", nested)

	_, err = client.Txn(ctx).Then(clientv3.OpPut("txn/c", "1"), clientv3.OpPut("txn/c", "2")).Commit()
	check(errors.Is(err, rpctypes.ErrDuplicateKey), "a key put twice: %v", err)
}

func watch(ctx context.Context, client *clientv3.Client) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start, err := client.Put(ctx, "watch/a", "1")
	must(err)
	history := client.Watch(ctx, "watch/", clientv3.WithPrefix(), clientv3.WithRev(start.Header.Revision), clientv3.WithPrevKV())
	fromNow := client.Watch(ctx, "watch/a", clientv3.WithCreatedNotify(), clientv3.WithFilterPut())
	check(next(fromNow).Created, "created notification")

	_, err = client.Put(ctx, "watch/a", "2")
	must(err)
	_, err = client.Txn(ctx).Then(clientv3.OpPut("watch/b", "1"), clientv3.OpDelete("watch/a")).Commit()
	must(err)

	var events []*clientv3.Event
	for len(events) < 4 {
		response := next(history)
		events = append(events, response.Events...)
	}
	check(len(events) == 4, "events: %v", events)
	check(events[0].IsCreate() && events[0].PrevKv == nil, "first event: %v", events[0])
	check(events[1].IsModify() && string(events[1].PrevKv.Value) == "1", "second event: %v", events[1])
	check(events[2].IsCreate() && string(events[2].Kv.Key) == "watch/b", "third event: %v", events[2])
	check(events[3].Type == clientv3.EventTypeDelete && string(events[3].PrevKv.Value) == "2", "fourth event: %v", events[3])
	check(events[2].Kv.ModRevision == events[3].Kv.ModRevision, "one txn, one revision: %v", events)

	deletion := next(fromNow)
	check(len(deletion.Events) == 1 && deletion.Events[0].Type == clientv3.EventTypeDelete, "filtered: %v", deletion)

	// Nothing is outstanding now, so a request for progress is answered with the current revision.
	must(client.RequestProgress(ctx))
	for {
		response := next(history)
		if response.IsProgressNotify() {
			check(response.Header.Revision == events[3].Kv.ModRevision, "progress: %v", response.Header)
			return
		}
	}
}

func watchCompacted(ctx context.Context, client *clientv3.Client) {
	var last *clientv3.PutResponse
	for i := range 5 {
		var err error
		last, err = client.Put(ctx, "compact/a", fmt.Sprint(i))
		must(err)
	}
	_, err := client.Compact(ctx, last.Header.Revision, clientv3.WithCompactPhysical())
	must(err)
	response := <-client.Watch(ctx, "compact/a", clientv3.WithRev(last.Header.Revision-2))
	check(errors.Is(response.Err(), rpctypes.ErrCompacted), "watch below the compacted revision: %v", response.Err())
	check(response.CompactRevision == last.Header.Revision, "compact revision: %v", response)
	_, err = client.Get(ctx, "compact/a", clientv3.WithRev(last.Header.Revision-1))
	check(errors.Is(err, rpctypes.ErrCompacted), "read below the compacted revision: %v", err)
	_, err = client.Compact(ctx, last.Header.Revision)
	check(errors.Is(err, rpctypes.ErrCompacted), "the same compaction again: %v", err)
}

func lease(ctx context.Context, client *clientv3.Client) {
	long, err := client.Grant(ctx, 60)
	must(err)
	_, err = client.Put(ctx, "lease/a", "1", clientv3.WithLease(long.ID))
	must(err)
	left, err := client.TimeToLive(ctx, long.ID, clientv3.WithAttachedKeys())
	must(err)
	check(left.GrantedTTL == 60 && left.TTL > 50 && len(left.Keys) == 1, "time to live: %v", left)
	renewed, err := client.KeepAliveOnce(ctx, long.ID)
	must(err)
	check(renewed.TTL == 60, "keep alive: %v", renewed)
	all, err := client.Leases(ctx)
	must(err)
	check(len(all.Leases) == 1 && all.Leases[0].ID == long.ID, "leases: %v", all)
	_, err = client.Revoke(ctx, long.ID)
	must(err)
	got, err := client.Get(ctx, "lease/a")
	must(err)
	check(got.Count == 0, "the key goes with its lease: %v", got)
	_, err = client.Revoke(ctx, long.ID)
	check(errors.Is(err, rpctypes.ErrLeaseNotFound), "revoke again: %v", err)
	_, err = client.Put(ctx, "lease/a", "1", clientv3.WithLease(long.ID))
	check(errors.Is(err, rpctypes.ErrLeaseNotFound), "put with a revoked lease: %v", err)

	short, err := client.Grant(ctx, 1)
	must(err)
	check(short.TTL == 2, "the shortest time to live: %v", short)
	watched := client.Watch(ctx, "lease/b", clientv3.WithFilterPut())
	_, err = client.Put(ctx, "lease/b", "1", clientv3.WithLease(short.ID))
	must(err)
	granted := time.Now()
	expired := next(watched)
	check(expired.Events[0].Type == clientv3.EventTypeDelete, "expiry: %v", expired)
	took := time.Since(granted)
	check(took > 1500*time.Millisecond && took < 5*time.Second, "a lease of 2 s lived for %v", took)
}

func mutex(ctx context.Context, client *clientv3.Client) {
	holder, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	must(err)
	waiter, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	must(err)
	held := concurrency.NewMutex(holder, "mutex")
	must(held.Lock(ctx))
	wanted := concurrency.NewMutex(waiter, "mutex")
	check(errors.Is(wanted.TryLock(ctx), concurrency.ErrLocked), "a held mutex can not be had")

	locked := make(chan error, 1)
	go func() { locked <- wanted.Lock(ctx) }()
	select {
	case err := <-locked:
		check(false, "locked although held: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	must(held.Unlock(ctx))
	must(<-locked)

	owner, err := client.Txn(ctx).If(wanted.IsOwner()).Then(clientv3.OpPut("mutex-guarded", "1")).Commit()
	must(err)
	check(owner.Succeeded, "the owner's write: %v", owner)
	// Closing the session revokes its lease: the mutex is free again without an unlock.
	must(waiter.Close())
	must(held.TryLock(ctx))
	must(held.Unlock(ctx))
	must(holder.Close())
}

func election(ctx context.Context, client *clientv3.Client) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	one, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	must(err)
	two, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	must(err)
	first := concurrency.NewElection(one, "election")
	second := concurrency.NewElection(two, "election")
	_, err = first.Leader(ctx)
	check(errors.Is(err, concurrency.ErrElectionNoLeader), "no leader yet: %v", err)

	must(first.Campaign(ctx, "one"))
	observed := second.Observe(ctx)
	seen, open := <-observed
	check(open, "the observer's channel is closed")
	check(string(seen.Kvs[0].Value) == "one", "first leader: %v", seen)
	won := make(chan error, 1)
	go func() { won <- second.Campaign(ctx, "two") }()
	must(first.Proclaim(ctx, "one again"))
	seen, open = <-observed
	check(open, "the observer's channel is closed")
	check(string(seen.Kvs[0].Value) == "one again", "proclaimed: %v", seen)
	must(first.Resign(ctx))
	must(<-won)
	seen, open = <-observed
	check(open, "the observer's channel is closed")
	check(string(seen.Kvs[0].Value) == "two", "second leader: %v", seen)
	leader, err := first.Leader(ctx)
	must(err)
	check(string(leader.Kvs[0].Value) == "two", "leader: %v", leader)
	must(two.Close())
	must(one.Close())
}

func stm(ctx context.Context, client *clientv3.Client) {
	const workers, transfers = 4, 25
	_, err := client.Put(ctx, "stm/from", fmt.Sprint(workers*transfers))
	must(err)
	_, err = client.Put(ctx, "stm/to", "0")
	must(err)
	failed := make(chan error, workers)
	for range workers {
		go func() {
			for range transfers {
				_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					var from, to int
					if _, err := fmt.Sscan(stm.Get("stm/from"), &from); err != nil {
						return err
					}
					if _, err := fmt.Sscan(stm.Get("stm/to"), &to); err != nil {
						return err
					}
					stm.Put("stm/from", fmt.Sprint(from-1))
					stm.Put("stm/to", fmt.Sprint(to+1))
					return nil
				}, concurrency.WithAbortContext(ctx), concurrency.WithPrefetch("stm/from", "stm/to"))
				if err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range workers {
		must(<-failed)
	}
	got, err := client.Get(ctx, "stm/", clientv3.WithPrefix())
	must(err)
	check(string(got.Kvs[0].Value) == "0" && string(got.Kvs[1].Value) == fmt.Sprint(workers*transfers), "after all transfers: %v", got)
}

func status(ctx context.Context, client *clientv3.Client) {
	endpoint := client.Endpoints()[0]
	status, err := client.Status(ctx, endpoint)
	must(err)
	check(status.Version[:2] == "3." && status.Leader == status.Header.MemberId && status.DbSize > 0, "status: %v", status)
	members, err := client.MemberList(ctx)
	must(err)
	check(len(members.Members) == 1 && members.Members[0].ID == status.Header.MemberId, "members: %v", members)
	check(len(members.Members[0].ClientURLs) == 1, "advertised: %v", members)
	hash, err := client.HashKV(ctx, endpoint, 0)
	must(err)
	again, err := client.HashKV(ctx, endpoint, hash.HashRevision)
	must(err)
	check(hash.Hash == again.Hash && hash.CompactRevision == again.CompactRevision, "hash: %v, %v", hash, again)
	alarms, err := client.AlarmList(ctx)
	must(err)
	check(len(alarms.Alarms) == 0, "alarms: %v", alarms)
	_, err = client.Defragment(ctx, endpoint)
	must(err)
}

// next waits for a watcher's next response, which must not be its end.
func next(responses clientv3.WatchChan) clientv3.WatchResponse {
	response, open := <-responses
	check(open, "a watcher's channel is closed")
	must(response.Err())
	return response
}

func must(err error) {
	check(err == nil, "%v", err)
}

// check ends the program with the text when the claim does not hold.
func check(holds bool, format string, arguments ...any) {
	if !holds {
		panic("not as etcd does it: " + fmt.Sprintf(format, arguments...))
	}
}
