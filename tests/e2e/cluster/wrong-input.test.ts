/**
 * Wrong installations on a real node: each reports the reason in a place that `kubectl` shows. Three installations run side by side: two
 * with one name and FineTunes of one name, and a third with another name and wrong settings.
 */
import { afterAll, beforeAll, expect, it } from "vitest";
import {
  base,
  type ClusterNamespace,
  component,
  conditionOf,
  createNamespace,
  eventually,
  type Json,
  type Values,
} from "./cluster-under-test.ts";

/** Nothing is served here. */
const values = (more: Values = {}): Values => ({
  nats: { persistence: { enabled: false } },
  gateway: { replicas: 1 },
  engines: [{ name: "smollm2", base, replicas: 0 }],
  ...more,
});
const unknownGpu = { train: { pods: { gpuResource: "amd.com/gpu" } } };
const wrong = { release: "wrong" };
const training = { max_steps: 4, per_device_train_batch_size: 2 };

let one: ClusterNamespace;
let two: ClusterNamespace;
let three: ClusterNamespace;
beforeAll(async () => {
  [one, two, three] = await Promise.all([createNamespace("wrong-one"), createNamespace("wrong-two"), createNamespace("wrong-three")]);
  await Promise.all([one.addSample(), two.addSample()]);
  await Promise.all([one.helmInstall(values({ networkPolicy: { enabled: false } })), two.helmInstall(values(unknownGpu))]);
  await Promise.all([one.ready(), two.ready()]);
});
afterAll(() => Promise.all([one, two, three].map((space) => space[Symbol.asyncDispose]())), 480_000);

const trained = (space: ClusterNamespace, resource: string): Promise<Json> =>
  space.until(resource, "trained", (status) => conditionOf(status, "Trained")?.status === "True");

/** Components that run in every installation. */
const components = ["gateway", "ingest", "tokenize", "train", "serve", "operator", "streams"];
const within = { timeout: 120_000, interval: 1000 };
/** @returns components without a pod that reports it. */
async function silent(space: ClusterNamespace, what: RegExp, wordsOf: (pod: Json) => Promise<string>): Promise<string[]> {
  const said = async (one: string) => await Promise.all((await space.pods(component(one))).map(wordsOf));
  const all = await Promise.all(components.map(async (one) => ({ one, words: await said(one) })));
  return all.filter(({ words }) => !words.some((text) => what.test(text))).map(({ one }) => one);
}

it(
  "two installations of one name, two FineTunes of one name: two runs; a GPU that no node knows is named",
  { timeout: 900_000 },
  async () => {
    await Promise.all([one, two].map((space) => space.fineTune("same", { adapter: "same", training })));
    const waiting = await two.until("same", "waiting", ({ phase }) => phase === "Queued", 120_000);
    expect(conditionOf(waiting, "Trained")).toMatchObject({
      reason: "WAITING_FOR_DEVICE",
      message: expect.stringContaining("Insufficient amd.com/gpu"),
    });
    const { runId } = await trained(one, "same");
    expect(runId).not.toBe(waiting.runId);

    // The remedy of docs/operations.md: the value is corrected, and the Job is made again.
    await two.helmInstall(values());
    await two.ready();
    await two.runs.kubectl("delete", "job", "--selector", component("train-attempt"));
    expect(await trained(two, "same")).toMatchObject({ attempt: 1, runId: waiting.runId });
  },
);

it("an attempt whose credentials NATS refuses says so in its run, which goes on when they are mended", { timeout: 900_000 }, async () => {
  const password = await one.secret("loraline-nats-auth", "courier");
  const set = async (to: string) => {
    await one.kubectl("patch", "secret", "loraline-nats-auth", "--type=merge", "-p", JSON.stringify({ stringData: { courier: to } }));
    // Train writes what it sees into the couriers' Secret. The kubelet updates the file within a minute or two.
    const seen = async () =>
      one.kubectl("exec", await one.podOf(component("train")), "--", "node", "-p", "fs.readFileSync('/courier/nats-password', 'utf8')");
    await eventually("train sees it", async () => (await seen()).trim() === to, { timeoutMs: 180_000, everyMs: 1000 });
  };
  await set("wrong");
  await one.fineTune("refused", { adapter: "refused", training });
  const refused = await one.until("refused", "told", ({ message }) => /refused the credentials/.test(message ?? ""));
  expect(refused.message).toMatch(/^NATS at nats:\S+ refused the credentials of "courier"/);
  expect(conditionOf(refused, "Trained")).toMatchObject({ status: "Unknown", reason: "NATS_UNAUTHORIZED" });
  await set(password);
  await trained(one, "refused");
});

it("two operators are not set on one namespace", async () => {
  const both = values({ operator: { namespaces: [three.name, one.name] } });
  await expect(three.helmInstall(both, wrong)).rejects.toThrow(/Lease "loraline-operator" in namespace "wrong-one" exists/);
});

it("no storage class: the claim says so, and every pod says that it waits for NATS", { timeout: 900_000 }, async () => {
  await three.helmInstall(values({ nats: { persistence: { enabled: true, storageClassName: null } } }), wrong);
  const claim = "data-wrong-loraline-nats-0";
  await eventually("the claim says why", async () => /no storage class is set/.test(await three.kubectl("describe", "pvc", claim)));
  const [nats] = await three.pods(component("nats"));
  expect(nats.status.conditions[0]).toMatchObject({ message: expect.stringContaining("unbound immediate PersistentVolumeClaims") });
  const logOf = ({ metadata }: Json) => three.kubectl("logs", metadata.name as string, "--tail=5");
  await expect.poll(() => silent(three, /cannot reach NATS at nats:\/\/wrong-loraline-nats\S*:4222/, logOf), within).toEqual([]);
});

it("wrong passwords for a NATS of one's own: every pod ends with that reason", { timeout: 900_000 }, async () => {
  const { data } = await one.get("secret", "loraline-nats-auth");
  const stringData = Object.fromEntries(Object.keys(data as object).map((user) => [user, "wrong"]));
  await three.apply({ apiVersion: "v1", kind: "Secret", metadata: { name: "passwords" }, stringData });
  const nats = { enabled: false, url: `nats://loraline-nats.${one.name}:4222`, auth: { existingSecret: "passwords" } };
  await three.helmInstall(values({ nats }), wrong);
  const lastWords = async ({ status }: Json): Promise<string> => {
    const { state, lastState } = status.containerStatuses?.[0] ?? {};
    return (state?.terminated ?? lastState?.terminated)?.message ?? "";
  };
  await expect.poll(() => silent(three, /refused the credentials/, lastWords), within).toEqual([]);
});
