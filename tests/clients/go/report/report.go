// Package report tells the test what a client does: one JSON object per line of standard output.
package report

import (
	"encoding/json"
	"fmt"
	"os"
)

// Event tells that the client delivered an event.
func Event(kind, data, id string) {
	if kind == "" {
		kind = "message"
	}
	say(map[string]string{"kind": "event", "type": kind, "data": data, "id": id})
}

// Error tells that the client spoke of trouble; it may go on by itself.
func Error(trouble any) {
	say(map[string]string{"kind": "error", "text": fmt.Sprint(trouble)})
}

// End tells that the client has given up, or is done: nothing will come any more.
func End(why any) {
	say(map[string]string{"kind": "end", "text": fmt.Sprint(why)})
}

// Arguments returns the URL to connect to and the cursor to resume from, "" for none.
func Arguments() (url, cursor string) {
	return os.Args[1], os.Args[2]
}

func say(report map[string]string) {
	line, err := json.Marshal(report)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}
