// r3labs/sse, with its default strategy for coming back; --buffer raises the bound on one event to 1 MiB.
package main

import (
	"os"
	"slices"
	"time"

	"github.com/r3labs/sse/v2"

	"sse-gateway/tests/clients/report"
)

func main() {
	url, cursor := report.Arguments()
	var options []func(*sse.Client)
	if slices.Contains(os.Args, "--buffer") {
		options = append(options, sse.ClientMaxBufferSize(1<<20))
	}
	client := sse.NewClient(url, options...)
	if cursor != "" {
		client.LastEventID.Store([]byte(cursor))
	}
	client.ReconnectNotify = func(err error, _ time.Duration) { report.Error(err) }
	err := client.SubscribeRaw(func(message *sse.Event) {
		report.Event(string(message.Event), string(message.Data), string(message.ID))
	})
	report.End(err)
}
