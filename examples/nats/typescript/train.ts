/**
 * From rows to an adapter that answers, by messages alone.
 *
 *     node train.ts https://data.example.org/pirate.jsonl.gz pirate [BASE]
 *
 * NATS_URL, NATS_USER (tenant.NAME) and NATS_PASS say where and as whom. Every message and its fields: docs/asyncapi.json.
 */
import {
  connect,
  headers,
  type Msg,
  type NatsConnection,
  NoRespondersError,
  RequestError,
  type Subscription,
} from "@nats-io/transport-node";
import { ulid } from "ulid";

/** What this program reads of events. */
type Data = Partial<Record<"code" | "message" | "param", string>> & Partial<Record<"records" | "rejections" | "version" | "to", number>>;

class Failure extends Error {}

/** Says what is wanted. It is a request, so that a stream answers when it has stored the message: from then on it is not lost. */
async function command(nc: NatsConnection, subject: string, body: object): Promise<void> {
  const once = headers();
  once.set("Nats-Msg-Id", ulid()); // the stream drops a repetition, so that asking again is harmless
  for (let attempt = 0; attempt < 3; attempt++) {
    let reply: Msg;
    try {
      reply = await nc.request(subject, JSON.stringify(body), { timeout: 10_000, headers: once });
    } catch (error) {
      if (error instanceof NoRespondersError || (error instanceof RequestError && error.isNoResponders()))
        throw new Failure(`no stream takes ${subject}: has the line a door for this tenant (nats.tenants in the chart's values)?`);
      if (error instanceof Error && error.name === "TimeoutError") continue;
      throw new Failure(`${subject} cannot be said: ${(error as Error).message}`);
    }
    const { error } = reply.json<{ error?: { description: string } }>();
    if (error === undefined) return;
    throw new Failure(`${subject} was not stored: ${error.description}. Nothing has begun; try again later.`);
  }
  throw new Failure(`${subject} was not acknowledged. Does NATS have a leader?`);
}

/** What happens, such as ["ingested", {…}]. Silence for longer than `quietS` ends the program. */
async function* events(sub: Subscription, quietS?: number): AsyncGenerator<[kind: string, data: Data]> {
  const about = sub.getSubject().replace(/\.>$/, "");
  const messages = sub[Symbol.asyncIterator]();
  // Until the gateway has taken the command; afterwards work may take its time.
  for (let wait: number | undefined = quietS ?? 30; ; wait = quietS) {
    let timer: NodeJS.Timeout | undefined;
    const silence = new Promise<never>((_, reject) => {
      const words = `nothing came on ${about} for ${wait} s. A command that cannot be followed is a failed message: \`loraline dlq ls\`.`;
      if (wait !== undefined) timer = setTimeout(() => reject(new Failure(words)), wait * 1000);
    });
    const next = await Promise.race([messages.next(), silence]).finally(() => clearTimeout(timer));
    if (next.done === true) throw new Failure(`the connection ended; what came of ${about} meanwhile: \`loraline runs\``);
    const [kind = "", data] = [next.value.subject.split(".")[4], next.value.json<Data & Record<string, unknown>>()];
    const said = ["code", "step", "loss", "version"]
      .filter((key) => data[key] !== undefined && data[key] !== null)
      .map((key) => `${key}=${String(data[key])}`);
    console.log(about, kind, ...said);
    yield [kind, data];
  }
}

const failureOf = (what: string, { code, message, param }: Data): Failure =>
  new Failure(`${what}: ${message}${param ? ` (field ${param})` : ""}\n\`loraline explain ${code}\` says more.`);

/** Has the line fetch the rows. Bytes do not travel through NATS: https from a public address, or what LORALINE_IMPORT_ALLOW names. */
async function ingest(nc: NatsConnection, of: string, url: string): Promise<string> {
  const dataset = ulid();
  const sub = nc.subscribe(`${of}.dataset.${dataset}.>`); // first listen, then speak
  await command(nc, `${of}.dataset.${dataset}.import-requested.v1`, { source: { url } });
  for await (const [kind, data] of events(sub)) {
    if (kind === "rejected") throw failureOf("nothing in the dataset can be trained on", data);
    if (kind !== "ingested") continue;
    console.log(`${data.records} records, ${data.rejections} rows that cannot be used`);
    break;
  }
  return dataset;
}

/** Trains, and waits until the version is proven on its replicas. `spec` is the run spec: docs/run-spec.md. */
async function train(nc: NatsConnection, of: string, spec: object): Promise<number> {
  const run = ulid();
  const sub = nc.subscribe(`${of}.run.${run}.>`);
  await command(nc, `${of}.run.${run}.requested.v1`, { spec });
  for await (const [kind, data] of events(sub)) {
    if (kind === "served") return data.version as number;
    if (kind === "rejected" || kind === "failed") throw failureOf(`run ${run} ended without a version`, data);
    if (kind === "cancelled") throw new Failure(`run ${run} was cancelled`);
  }
  throw new Failure(`run ${run} was not followed to its end`);
}

/** Moves the alias to the version, so that whoever asks for the adapter gets it. */
async function promote(nc: NatsConnection, of: string, adapter: string, version: number): Promise<void> {
  const sub = nc.subscribe(`${of}.adapter.${adapter}.>`);
  await command(nc, `${of}.adapter.${adapter}.promote-requested.v1`, { version });
  for await (const [kind, data] of events(sub, 60)) if (kind === "promoted" && data.to === version) return;
}

try {
  const [url, adapter, base = "smollm2-135m-instruct", more] = process.argv.slice(2);
  const { NATS_URL: servers = "nats://127.0.0.1:4222", NATS_USER: user = "", NATS_PASS: pass = "" } = process.env;
  if (url === undefined || adapter === undefined || more !== undefined)
    throw new Failure(
      "usage: node train.ts URL-OF-ROWS ADAPTER [BASE]; NATS_URL, NATS_USER (tenant.NAME) and NATS_PASS in the environment",
    );
  const tenant = user.replace(/^tenant\./, "");
  // `inboxPrefix`: the only inbox where this user may hear answers. `noEcho`: what is heard is what the line took, not what this program said.
  const nc = await connect({ servers, user, pass, inboxPrefix: `_INBOX_tenant_${tenant}`, noEcho: true }).catch((error: Error) => {
    const check = "Check NATS_URL, NATS_USER (tenant.NAME) and NATS_PASS; `loraline nats-context` prints them.";
    throw new Failure(`cannot connect to ${servers}: ${error.message}. ${check}`);
  });
  const of = `loraline.${tenant}`;
  const dataset = await ingest(nc, of, url);
  const version = await train(nc, of, { base, adapter, dataset, promote: "manual" });
  await promote(nc, of, adapter, version);
  console.log(`${tenant}/${adapter} is version ${version} now`);
  await nc.close();
} catch (error) {
  if (!(error instanceof Failure)) throw error;
  console.error(error.message);
  process.exit(1);
}
