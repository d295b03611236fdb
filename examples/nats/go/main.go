// From rows to an adapter that answers, by messages alone.
//
//	go run . https://data.example.org/pirate.jsonl.gz pirate [BASE]
//
// NATS_URL, NATS_USER (tenant.NAME) and NATS_PASS say where and as whom. Every message and its fields: docs/asyncapi.json.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/oklog/ulid/v2"
)

// data is what this program reads of events.
type data struct {
	Code, Message, Param                   string
	Step, Records, Rejections, Version, To int
	Loss                                   *float64
}

func fail(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
	os.Exit(1)
}

// command says what is wanted. It is a request, so that a stream answers when it has stored the message: from then on it is not lost.
func command(nc *nats.Conn, subject string, body any) {
	text, _ := json.Marshal(body)
	message := &nats.Msg{Subject: subject, Data: text, Header: nats.Header{}}
	message.Header.Set(nats.MsgIdHdr, ulid.Make().String()) // the stream drops a repetition, so that asking again is harmless
	for range 3 {
		reply, err := nc.RequestMsg(message, 10*time.Second)
		if errors.Is(err, nats.ErrTimeout) {
			continue
		} else if errors.Is(err, nats.ErrNoResponders) {
			fail("no stream takes %s: has the line a door for this tenant (nats.tenants in the chart's values)?", subject)
		} else if err != nil {
			fail("%s cannot be said: %v", subject, err)
		}
		var ack struct{ Error *struct{ Description string } }
		if err := json.Unmarshal(reply.Data, &ack); err != nil {
			fail("%s: no acknowledgement but %q", subject, reply.Data)
		}
		if ack.Error != nil {
			fail("%s was not stored: %s. Nothing has begun; try again later.", subject, ack.Error.Description)
		}
		return
	}
	fail("%s was not acknowledged: may this user publish it (NATS writes why above), and does NATS have a leader?", subject)
}

// ask listens, gives the command, and hands over what happens, such as "ingested", until `seen` says that it was the end. Silence for longer than
// `quiet` ends the program; 0: only silence before the gateway has taken the command does, as work may take its time.
func ask(nc *nats.Conn, about, verb string, body any, quiet time.Duration, seen func(kind string, d data) bool) {
	sub, err := nc.SubscribeSync(about + ".>")
	if err != nil {
		fail("cannot listen on %s: %v", about, err)
	}
	command(nc, about+"."+verb+".v1", body)
	for wait := max(quiet, 30*time.Second); ; wait = quiet {
		if wait == 0 {
			wait = 1000 * time.Hour
		}
		message, err := sub.NextMsg(wait)
		if errors.Is(err, nats.ErrTimeout) {
			fail("nothing came on %s for %v. A command that cannot be followed is a failed message: `loraline dlq ls`.", about, wait)
		} else if err != nil {
			fail("%s is not followed any more: %v. `loraline runs` shows what came of it.", about, err)
		}
		var d data
		if err := json.Unmarshal(message.Data, &d); err != nil {
			fail("%s is not what docs/asyncapi.json says: %v", message.Subject, err)
		}
		kind := strings.Split(message.Subject, ".")[4]
		fmt.Println(about, kind, d.Code)
		if kind == "progress" && d.Loss != nil {
			fmt.Printf("step %d, loss %.3f\n", d.Step, *d.Loss)
		}
		switch kind {
		case "rejected", "failed":
			fail("%s: %s %s\n`loraline explain %s` says more.", kind, d.Message, d.Param, d.Code)
		case "cancelled":
			fail("%s was cancelled", about)
		}
		if seen(kind, d) {
			return
		}
	}
}

func main() {
	if len(os.Args) < 3 || len(os.Args) > 4 {
		fail("usage: go run . URL-OF-ROWS ADAPTER [BASE]; NATS_URL, NATS_USER (tenant.NAME) and NATS_PASS in the environment")
	}
	url, adapter, base := os.Args[1], os.Args[2], "smollm2-135m-instruct"
	if len(os.Args) == 4 {
		base = os.Args[3]
	}
	user := os.Getenv("NATS_USER")
	tenant := strings.TrimPrefix(user, "tenant.")
	nc, err := nats.Connect(os.Getenv("NATS_URL"), nats.UserInfo(user, os.Getenv("NATS_PASS")),
		nats.CustomInboxPrefix("_INBOX_tenant_"+tenant), // the only inbox where this user may hear answers
		nats.NoEcho(), // what is heard is what the line took, not what this program said
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { fmt.Fprintln(os.Stderr, "NATS:", err) }))
	if err != nil {
		fail("cannot connect: %v. Check NATS_URL, NATS_USER (tenant.NAME) and NATS_PASS; `loraline nats-context` prints them.", err)
	}
	defer nc.Close()
	of, dataset, run, version := "loraline."+tenant, ulid.Make().String(), ulid.Make().String(), 0

	// Has the line fetch the rows. Bytes do not travel through NATS: https from a public address, or what LORALINE_IMPORT_ALLOW names.
	rows := map[string]any{"source": map[string]string{"url": url}}
	ask(nc, of+".dataset."+dataset, "import-requested", rows, 0, func(kind string, d data) bool {
		if kind == "ingested" {
			fmt.Printf("%d records, %d rows that cannot be used\n", d.Records, d.Rejections)
		}
		return kind == "ingested"
	})
	// Trains, and waits until the version is proven on its replicas. `spec` is the run spec: docs/run-spec.md.
	spec := map[string]any{"base": base, "adapter": adapter, "dataset": dataset, "promote": "manual"}
	ask(nc, of+".run."+run, "requested", map[string]any{"spec": spec}, 0, func(kind string, d data) bool {
		version = d.Version
		return kind == "served"
	})
	// Moves the alias to the version, so that whoever asks for the adapter gets it.
	ask(nc, of+".adapter."+adapter, "promote-requested", map[string]int{"version": version}, time.Minute, func(kind string, d data) bool {
		return kind == "promoted" && d.To == version
	})
	fmt.Printf("%s/%s is version %d now\n", tenant, adapter, version)
}
