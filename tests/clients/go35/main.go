// What Go's clientv3 3.5.0 asks of a server: put, get, watch. Of all its releases
// this one names its calls' target most strangely, `#initially=[127.0.0.1:2379]`
// in place of an authority, and whoever vendors it still does. Ends with status 1
// at the first thing that is not as etcd answers it.
//
//	STELE_ENDPOINT=127.0.0.1:2379 go run .
//
// STELE_SOCKET names the server's unix socket, which is asked too.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Longest time the whole program may take. Nothing here waits for anything; a call
// that is refused is tried again until this is over.
const programTimeout = 10 * time.Second

func main() {
	endpoint := os.Getenv("STELE_ENDPOINT")
	if endpoint == "" {
		endpoint = "127.0.0.1:2379"
	}
	endpoints := []string{endpoint}
	if socket := os.Getenv("STELE_SOCKET"); socket != "" {
		endpoints = append(endpoints, "unix://"+socket)
	}
	ctx, cancel := context.WithTimeout(context.Background(), programTimeout)
	defer cancel()
	for i, endpoint := range endpoints {
		putGetWatch(ctx, endpoint, fmt.Sprintf("go35/%d/", i))
		fmt.Println("ok put, get, watch at", endpoint)
	}
	fmt.Printf("go 3.5.0 client: %d of %d passed\n", len(endpoints), len(endpoints))
}

func putGetWatch(ctx context.Context, endpoint, prefix string) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{endpoint},
		DialTimeout: 5 * time.Second,
		Context:     ctx,
		Logger:      zap.NewNop(), // it would report each attempt
	})
	must(err)
	defer client.Close()

	put, err := client.Put(ctx, prefix+"a", "1")
	must(err)
	got, err := client.Get(ctx, prefix+"a")
	must(err)
	check(len(got.Kvs) == 1 && string(got.Kvs[0].Value) == "1", "get: %v", got)

	watch := client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(put.Header.Revision))
	_, err = client.Put(ctx, prefix+"b", "2")
	must(err)
	var values string
	for len(values) < 2 {
		response, open := <-watch
		check(open, "the watch's channel was closed after %q", values)
		must(response.Err())
		for _, event := range response.Events {
			values += string(event.Kv.Value)
		}
	}
	check(values == "12", "events: %q", values)
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
