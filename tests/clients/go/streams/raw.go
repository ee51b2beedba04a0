// The one step that no client library can be asked for: frames are written by
// hand, so that it is certain how many the server finds waiting at once.
package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"
)

const (
	rawStream = 1
	// The length of what stands before each message: compressed or not, length.
	messagePrefix = 5
	// Wide enough for all answers together, so that the server never waits for more.
	rawWindow = 16 << 20
	// HTTP/2's own default: none other is agreed upon.
	headerTable = 4096
)

// keepAlivesInOneWrite opens a connection and a stream and renews a lease
// 5,000 times, all in one write. With their prefixes these messages are 35 KB,
// half of what HTTP/2 lets a client send before it has heard from the server.
func keepAlivesInOneWrite(ctx context.Context, client *clientv3.Client) {
	const (
		renewals = 5_000
		// A number of one byte, for messages of two.
		leaseID    = 7
		ttlSeconds = 600
	)
	_, err := etcdserverpb.NewLeaseClient(client.ActiveConnection()).
		LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{ID: leaseID, TTL: ttlSeconds})
	must(err)

	endpoint := client.Endpoints()[0]
	connection, err := net.DialTimeout("tcp", endpoint, 5*time.Second)
	must(err)
	defer connection.Close()
	deadline, _ := ctx.Deadline()
	must(connection.SetDeadline(deadline))

	var request bytes.Buffer
	request.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&request, connection)
	must(framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: rawWindow}))
	must(framer.WriteWindowUpdate(0, rawWindow))
	must(framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID:      rawStream,
		BlockFragment: requestHeaders(endpoint),
		EndHeaders:    true,
	}))
	keepAlive, err := proto.Marshal(&etcdserverpb.LeaseKeepAliveRequest{ID: leaseID})
	must(err)
	message := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(keepAlive)))
	message = append(message, keepAlive...)
	for range renewals {
		must(framer.WriteData(rawStream, false, message))
	}
	_, err = connection.Write(request.Bytes())
	must(err)

	answers := answersOf(connection, framer, renewals)
	for i := range renewals {
		var answer etcdserverpb.LeaseKeepAliveResponse
		must(proto.Unmarshal(answers[i], &answer))
		check(answer.ID == leaseID && answer.TTL == ttlSeconds, "answer %d: %v", i, &answer)
	}
}

func requestHeaders(endpoint string) []byte {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: "/etcdserverpb.Lease/LeaseKeepAlive"},
		{Name: ":authority", Value: endpoint},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	} {
		must(encoder.WriteField(field))
	}
	return block.Bytes()
}

// answersOf reads frames until the stream has brought so many messages. The
// framer writes to a buffer that has been sent, so what is answered here goes to
// a framer of its own.
func answersOf(connection net.Conn, framer *http2.Framer, count int) [][]byte {
	replies := http2.NewFramer(connection, nil)
	framer.ReadMetaHeaders = hpack.NewDecoder(headerTable, nil)
	var body []byte
	var answers [][]byte
	for len(answers) < count {
		frame, err := framer.ReadFrame()
		check(err == nil, "after %d of %d answers: %v", len(answers), count, err)
		switch frame := frame.(type) {
		case *http2.DataFrame:
			body = append(body, frame.Data()...)
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				must(replies.WriteSettingsAck())
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				must(replies.WritePing(true, frame.Data))
			}
		case *http2.GoAwayFrame:
			check(false, "after %d of %d answers: GOAWAY %v %q", len(answers), count, frame.ErrCode, frame.DebugData())
		case *http2.RSTStreamFrame:
			check(false, "after %d of %d answers: RST_STREAM %v", len(answers), count, frame.ErrCode)
		case *http2.MetaHeadersFrame:
			check(!frame.StreamEnded(), "after %d of %d answers: the call's end: %v", len(answers), count, frame.Fields)
		}
		for len(body) >= messagePrefix {
			end := messagePrefix + int(binary.BigEndian.Uint32(body[1:messagePrefix]))
			if len(body) < end {
				break
			}
			answers = append(answers, body[messagePrefix:end])
			body = body[end:]
		}
	}
	return answers
}
