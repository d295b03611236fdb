/** Brings a state directory to this release before it is served: streams, consumers and buckets as this release needs them, and every entry read once. */
import { createBus, ensureStreams } from "@loraline/bus";
import { buckets, version } from "@loraline/contracts";
import { createJetStreamObjects } from "@loraline/objects";
import { createLog, createTelemetry, PermanentError } from "@loraline/runtime";
import { mkdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { localUser, startNats } from "../nats.ts";
import { keepStateVersion, killLeftovers, lockStateDir, readStateVersion } from "./state-dir.ts";

interface Upgraded {
  /** The release that wrote the state last; undefined: it did not say so. */
  from: string | undefined;
  to: string;
  /** Entries of KV that this release reads, by bucket. */
  read: Record<string, number>;
  /** Those that it cannot read. They stay as they are. */
  unread: string[];
}

/** @throws PermanentError LINE_RUNNING, STATE_EMPTY, NATS_NOT_STARTED, STORED_DATA_UNREADABLE */
export async function upgradeState(options: {
  stateDir: string;
  tenant: string;
  nats: string;
  env: Record<string, string | undefined>;
  pid: number;
}): Promise<Upgraded> {
  const { stateDir, tenant, nats: program, env, pid } = options;
  if ((await stat(join(stateDir, "nats")).catch(() => undefined)) === undefined) {
    throw new PermanentError("STATE_EMPTY", `${stateDir} holds no state yet: no server ever ran on it.`, { param: "--state" });
  }
  await using _lock = await lockStateDir(stateDir, pid);
  await killLeftovers(stateDir);
  await mkdir(join(stateDir, "logs"), { recursive: true });
  const from = await readStateVersion(stateDir);
  const log = createLog({ service: "upgrade", level: "silent" });
  await using nats = await startNats({
    stateDir,
    tenant,
    nats: program,
    env: { ...env, LORALINE_STATE: stateDir },
    logFile: join(stateDir, "logs/nats.log"),
    log,
    onEnded() {},
    onDiskFull() {},
  });
  const nc = await nats.connect(localUser);
  try {
    await ensureStreams(nc, { tenants: [tenant] });
    await createJetStreamObjects(nc);
    await using telemetry = createTelemetry({ service: "upgrade" });
    const bus = createBus({ nc, log, telemetry, source: "upgrade" });
    const read: Record<string, number> = {};
    const unread: string[] = [];
    for (const [name, def] of Object.entries(buckets)) {
      const bucket = await bus.bucket(def as (typeof buckets)["runs"]);
      const entries = await bucket.entries(">", { skipUnreadable: (key) => void unread.push(`${name} ${key}`) });
      read[name] = entries.length;
    }
    await keepStateVersion(stateDir, version);
    return { from, to: version, read, unread };
  } finally {
    await nc.close();
  }
}
