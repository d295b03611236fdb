/**
 * NATS' own numbers, from its monitor: what streams and buckets hold, how far consumers are behind, how full the store is. Read by one
 * service at each scrape, so that no exporter has to be installed beside NATS.
 */
import { consumers, streams } from "@loraline/contracts";
import type { Metrics } from "@loraline/runtime";
import { z } from "zod";

const withinMs = 3000;

const cluster = z.object({ leader: z.string().optional() }).optional();
/** `/jsz`; the parts that are used. */
const jsz = z.object({
  storage: z.number(),
  config: z.object({ max_storage: z.number() }).optional(),
  account_details: z
    .array(
      z.object({
        stream_detail: z
          .array(
            z.object({
              name: z.string(),
              cluster,
              state: z.object({ messages: z.number(), bytes: z.number() }),
              config: z.object({ max_bytes: z.number().optional() }).optional(),
              consumer_detail: z
                .array(
                  z.object({
                    name: z.string(),
                    cluster,
                    num_pending: z.number(),
                    num_ack_pending: z.number(),
                    num_redelivered: z.number(),
                  }),
                )
                .optional(),
            }),
          )
          .optional(),
      }),
    )
    .optional(),
});
/** `/varz` */
const varz = z.object({
  server_name: z.string(),
  connections: z.number(),
  slow_consumers: z.number(),
  in_msgs: z.number(),
  out_msgs: z.number(),
  in_bytes: z.number(),
  out_bytes: z.number(),
  mem: z.number(),
});

/** Durables that the contracts name; others are readers of histories, which come and go. */
const durables = new Set(Object.values(consumers).map(({ durable }): string => durable));
/** Without those of other tenants' doors, which are as many as there are tenants. */
const isOurs = (stream: string): boolean => Object.hasOwn(streams, stream) || /^(KV|OBJ)_/.test(stream);

/** @param monitors - base URLs of the servers' monitors (`http:` in NATS' settings). */
export function followNats({ metrics, monitors }: { metrics: Metrics; monitors: readonly string[] }): Disposable {
  const gauge = <L extends string>(name: string, help: string, ...labels: L[]) =>
    metrics.gauge<L>({ name: `loraline_nats_${name}`, help, labels });
  const up = gauge("up", "1: this server's monitor answers", "server");
  const storeUsed = gauge("store_bytes", "What the server has on its disk", "server");
  const storeLimit = gauge("store_limit_bytes", "What it may have there", "server");
  const memory = gauge("memory_bytes", "Resident memory of the server", "server");
  const connections = gauge("connections", "Clients that are connected", "server");
  const messages = gauge("stream_messages", "Messages in a stream; of DLQ: messages that failed for good", "stream");
  const bytes = gauge("stream_bytes", "Size of a stream", "stream");
  const limit = gauge("stream_limit_bytes", "Largest size of a stream, where it has one", "stream");
  const pending = gauge("consumer_pending", "Messages that nobody has taken yet: the lag of a service", "stream", "consumer");
  const unacknowledged = gauge("consumer_ack_pending", "Messages in work", "stream", "consumer");
  const redelivered = gauge("consumer_redelivered", "Messages in work that were delivered before", "stream", "consumer");
  const counter = (name: string, help: string) =>
    metrics.counter({ name: `loraline_nats_${name}_total`, help, labels: ["server", "direction"] });
  const sent = counter("messages", "Messages. direction: in, out");
  const sentBytes = counter("bytes", "Bytes. direction: in, out");
  const slow = metrics.counter({
    name: "loraline_nats_slow_consumers_total",
    help: "Clients that were cut off because they did not keep up",
    labels: ["server"],
  });

  return metrics.beforeScrape(async () => {
    const answers = await Promise.all(monitors.map((url) => askServer(url)));
    for (const each of [up, storeUsed, storeLimit, memory, connections, sent, sentBytes, slow]) each.reset();
    for (const [i, answer] of answers.entries()) {
      const server = answer?.server.server_name ?? nameOf(monitors[i] ?? "");
      up.set({ server }, answer === undefined ? 0 : 1);
      if (answer === undefined) continue;
      const { server: v, store } = answer;
      storeUsed.set({ server }, store.storage);
      if (store.config !== undefined) storeLimit.set({ server }, store.config.max_storage);
      memory.set({ server }, v.mem);
      connections.set({ server }, v.connections);
      sent.inc({ server, direction: "in" }, v.in_msgs);
      sent.inc({ server, direction: "out" }, v.out_msgs);
      sentBytes.inc({ server, direction: "in" }, v.in_bytes);
      sentBytes.inc({ server, direction: "out" }, v.out_bytes);
      slow.inc({ server }, v.slow_consumers);
    }
    for (const each of [messages, bytes, limit, pending, unacknowledged, redelivered]) each.reset();
    for (const { server, store } of answers.filter((answer) => answer !== undefined)) {
      /** Of several servers the leader counts: the others may be behind. */
      const leads = ({ cluster }: { cluster?: { leader?: string | undefined } | undefined }): boolean =>
        cluster === undefined || cluster.leader === server.server_name;
      for (const found of store.account_details?.flatMap(({ stream_detail }) => stream_detail ?? []) ?? []) {
        const stream = found.name;
        if (!isOurs(stream)) continue;
        if (leads(found)) {
          messages.set({ stream }, found.state.messages);
          bytes.set({ stream }, found.state.bytes);
          if ((found.config?.max_bytes ?? -1) > 0) limit.set({ stream }, found.config?.max_bytes ?? 0);
        }
        for (const one of found.consumer_detail ?? []) {
          if (!durables.has(one.name) || !leads(one)) continue;
          pending.set({ stream, consumer: one.name }, one.num_pending);
          unacknowledged.set({ stream, consumer: one.name }, one.num_ack_pending);
          redelivered.set({ stream, consumer: one.name }, one.num_redelivered);
        }
      }
    }
  });
}

/** As the server calls itself in the chart, where its pod's name is the first part of the host. */
function nameOf(url: string): string {
  const { host, hostname } = new URL(url);
  return /^[\d.]+$|:/.test(hostname) ? host : (hostname.split(".")[0] ?? host);
}

/** undefined: it does not answer, or not as a NATS server does. */
async function askServer(url: string) {
  const ask = async (path: string): Promise<unknown> =>
    (await fetch(`${url.replace(/\/+$/, "")}/${path}`, { signal: AbortSignal.timeout(withinMs) })).json();
  try {
    const [server, store] = await Promise.all([ask("varz"), ask("jsz?accounts=true&streams=true&consumers=true&config=true")]);
    return { server: varz.parse(server), store: jsz.parse(store) };
  } catch {
    return undefined;
  }
}
