/** Reconciles the Bases of the release's namespace: a Job brings each onto the volume and says which bytes it is. */
import type { V1Job } from "@kubernetes/client-node";
import { type Kube, KubeError, watch } from "@loraline/kube";
import { createKeyedQueue, type KeyedQueue, type Log, type Telemetry } from "@loraline/runtime";
import { isTrue } from "../conditions.ts";
import { madeBy } from "../decide-adapter.ts";
import { type Base, bases, configMaps, jobs, pods } from "../resources.ts";
import { createStatusWriter, isOlder } from "../write-status.ts";
import { enginesOff } from "./accept-engines.ts";
import { baseJob, baseLabel, decideBase } from "./base-manifest.ts";
import { engineTemplate } from "./engine-manifest.ts";

interface BasesDeps {
  kube: Kube;
  log: Log;
  telemetry: Telemetry;
  namespace: string;
  /** ConfigMap with the chart's template. */
  templateName: string;
  signal: AbortSignal;
}

/** Nothing tells of a pod's own troubles, so they are looked up while a Base is not ready. */
const lookAgainMs = 5000;

/** Reconciles until the signal is aborted. */
export async function serveBases({ kube, log, telemetry, namespace, templateName, signal }: BasesDeps): Promise<void> {
  const objects = new Map<string, Base>();
  const made = new Map<string, V1Job>();
  const writer = createStatusWriter(kube, bases);
  let started = false;

  const template = async (): Promise<V1Job | undefined> => {
    const text = (await kube.get(configMaps, { namespace, name: templateName }))?.data?.["template.json"];
    return text === undefined ? undefined : engineTemplate.parse(JSON.parse(text)).base;
  };
  const reconcile = async (name: string): Promise<void> => {
    const object = objects.get(name);
    if (object === undefined || object.metadata?.deletionTimestamp !== undefined) return;
    // What is ready stays so: its Job is done, and goes some time later.
    if (isTrue(object.status?.conditions, "Ready")) return;
    const own = made.get(name);
    const isOwn = own?.metadata?.ownerReferences?.some(({ uid }) => uid === object.metadata?.uid) === true;
    let refused = undefined;
    if (!isOwn) {
      const job = await template();
      if (job === undefined) refused = enginesOff;
      else
        await kube.create(jobs, baseJob(object, job, namespace)).catch((error: unknown) => {
          // That of a Base of the same name that was deleted goes first.
          if (!(error instanceof KubeError) || error.reason !== "AlreadyExists") throw error;
        });
    }
    const itsPods = isOwn
      ? (await kube.list(pods, { namespace, labelSelector: `${baseLabel}=${name},app.kubernetes.io/component=base` })).items
      : [];
    const status = decideBase({
      generation: object.metadata?.generation ?? 1,
      before: object.status,
      refused,
      hub: object.spec?.hub,
      pods: itsPods.filter(({ metadata }) => metadata?.ownerReferences?.some(({ uid }) => uid === own?.metadata?.uid)),
      now: new Date().toISOString(),
    });
    const { written, afterMs } = await writer.write(object, status);
    const known = objects.get(name);
    if (written !== undefined && known !== undefined && !isOlder(written, known)) objects.set(name, written);
    if (afterMs !== undefined) queue.addAfter(name, afterMs);
    if (!isTrue(status.conditions, "Ready")) queue.addAfter(name, lookAgainMs);
  };

  await using queue: KeyedQueue = createKeyedQueue({
    concurrency: 4,
    log,
    work: reconcile,
    measured: { metrics: telemetry.metrics, name: "bases" },
  });
  const known = Array.from({ length: 2 }, () => Promise.withResolvers<void>());
  const watching = [
    watch<Base>(kube, bases, {
      namespace,
      signal,
      log,
      onReady: () => known[0]?.resolve(),
      onChange(key, object) {
        const name = key.slice(namespace.length + 1);
        const before = objects.get(name);
        if (before !== undefined && before.metadata?.uid !== object?.metadata?.uid) writer.forget(before.metadata?.uid ?? "");
        if (object === undefined) objects.delete(name);
        else objects.set(name, object);
        if (started) queue.add(name);
      },
    }),
    watch<V1Job>(kube, jobs, {
      namespace,
      labelSelector: `app.kubernetes.io/managed-by=${madeBy["app.kubernetes.io/managed-by"]},${baseLabel}`,
      signal,
      log,
      onReady: () => known[1]?.resolve(),
      onChange(key, object) {
        const of = object ?? [...made.values()].find(({ metadata }) => `${namespace}/${metadata?.name}` === key);
        const name = of?.metadata?.labels?.[baseLabel];
        if (name === undefined) return;
        if (object === undefined) made.delete(name);
        else made.set(name, object);
        if (started) queue.add(name);
      },
    }),
  ];
  const ended = new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener("abort", () => resolve(), { once: true });
  });
  await Promise.race([ended, Promise.all(known.map(({ promise }) => promise))]);
  started = true;
  if (!signal.aborted) for (const name of objects.keys()) queue.add(name);
  await ended;
  await Promise.all(watching);
}
