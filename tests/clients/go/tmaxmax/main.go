// tmaxmax/go-sse, with its default client. With --careful the bound on one event is 1 MiB, and the
// first cursor goes into the URL instead of the header.
package main

import (
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/tmaxmax/go-sse"

	"sse-gateway/tests/clients/report"
)

func main() {
	url, cursor := report.Arguments()
	careful := slices.Contains(os.Args, "--careful")
	if careful && cursor != "" {
		url += "?last_event_id=" + cursor
	}
	request, err := http.NewRequest(http.MethodGet, url, http.NoBody)
	if err != nil {
		panic(err)
	}
	if !careful && cursor != "" {
		request.Header.Set("Last-Event-ID", cursor)
	}
	client := sse.Client{OnRetry: func(err error, _ time.Duration) { report.Error(err) }}
	connection := client.NewConnection(request)
	if careful {
		connection.Buffer(nil, 1<<20)
	}
	connection.SubscribeToAll(func(event sse.Event) { report.Event(event.Type, event.Data, event.LastEventID) })
	report.End(connection.Connect())
}
