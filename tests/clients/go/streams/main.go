// Many small messages on one stream against one server: what a client sends in a
// burst is served whole, and costs neither its stream nor its connection. Ends
// with status 1 at the first thing that is not as etcd answers it.
//
//	STELE_ENDPOINT=127.0.0.1:2379 go run ./streams
package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Longest time the whole program may take: the leases are watched for twenty
// seconds, and granting them takes a busy machine some more.
const programTimeout = 90 * time.Second

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
		Logger:      zap.NewNop(), // it would report every stream that is tried again
	})
	must(err)
	defer client.Close()

	steps := []struct {
		name string
		run  func(context.Context, *clientv3.Client)
	}{
		{"5,000 keep-alives in one write", keepAlivesInOneWrite},
		{"10,000 watches created on one stream", watchesOnOneStream},
		{"8,000 leases kept by one client", keptLeases},
	}
	for _, step := range steps {
		step.run(ctx, client)
		fmt.Println("ok", step.name)
	}
	fmt.Printf("streams client: %d of %d passed\n", len(steps), len(steps))
}

// watchesOnOneStream creates watches without waiting for the answers, as
// clientv3 itself does not: it sends the next creation when the last is answered.
func watchesOnOneStream(ctx context.Context, client *clientv3.Client) {
	const watches = 10_000
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := etcdserverpb.NewWatchClient(client.ActiveConnection()).Watch(ctx)
	must(err)
	sent := make(chan error, 1)
	go func() {
		for i := range watches {
			create := &etcdserverpb.WatchCreateRequest{Key: fmt.Appendf(nil, "streams/%d", i)}
			request := &etcdserverpb.WatchRequest{
				RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: create},
			}
			if err := stream.Send(request); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	var last int64
	for i := range watches {
		response, err := stream.Recv()
		check(err == nil, "after %d watches: %v", i, err)
		check(response.Created && !response.Canceled, "watch %d is not created: %v", i, response)
		last = response.WatchId
	}
	must(<-sent)
	_, err = client.Put(ctx, fmt.Sprintf("streams/%d", watches-1), "1")
	must(err)
	response, err := stream.Recv()
	must(err)
	check(response.WatchId == last && len(response.Events) == 1, "the last watch's event: %v", response)
}

// keptLeases leaves everything to clientv3, which renews all of a client's
// leases on one stream: those that are due, every half second, in a burst.
func keptLeases(ctx context.Context, client *clientv3.Client) {
	const (
		leases     = 8_000
		ttlSeconds = 6
		// Three times and more what a lease lives unrenewed.
		watched = 20 * time.Second
		// Grants that are under way at a time: they share the server's syncs.
		granters = 64
	)
	var next, lost atomic.Int64
	var granting sync.WaitGroup
	for range granters {
		granting.Go(func() {
			for next.Add(1) <= leases {
				lease, err := client.Grant(ctx, ttlSeconds)
				must(err)
				renewals, err := client.KeepAlive(ctx, lease.ID)
				must(err)
				go func() {
					for range renewals {
					}
					lost.Add(1)
				}()
			}
		})
	}
	granting.Wait()
	for end := time.Now().Add(watched); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		check(lost.Load() == 0, "%d of %d leases are lost", lost.Load(), leases)
	}
	all, err := client.Leases(ctx)
	must(err)
	// One more is the raw stream's.
	check(len(all.Leases) == leases+1, "of %d leases the server knows %d", leases+1, len(all.Leases))
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
