/**
 * The door for tenants' NATS clients. What a client says is not stored where everybody's events are: NATS puts it into a small stream of its
 * tenant, and the gateway takes it from there, judges it and says it (docs/adr/0018).
 */
import { type EventDef, filterFor } from "./define-event.ts";
import * as e from "./events.ts";
import type { ConsumerDef, StreamDef } from "./streams.ts";

/** Events by which users give commands. Services do not trust what such a message says about its origin. */
export const commands: readonly EventDef[] = [
  e.datasetImportRequested,
  e.datasetReceived,
  e.runRequested,
  e.runCancelRequested,
  e.runPauseRequested,
  e.runResumeRequested,
  e.adapterPromoteRequested,
  e.adapterRollbackRequested,
  e.adapterPlaceRequested,
  e.adapterKeepRequested,
  e.adapterVersionWanted,
  e.adapterCheckpointWanted,
  e.adapterVersionDeleteRequested,
  e.adapterDeleteRequested,
];

/**
 * A version or checkpoint is asked for by chatting with it: the gateway says so once in a while, and no client as often as it likes. Deletions of whole
 * adapters stay in the audit log beside what says who may do what, so the gateway counts them, and Kubernetes those of resources.
 */
export const tenantCommands: readonly EventDef[] = commands.filter(
  (event) => event !== e.adapterVersionWanted && event !== e.adapterCheckpointWanted && event !== e.adapterDeleteRequested,
);

/** Commands that stop something or make room: who has no room left may still give them. */
export const freeingCommands: readonly EventDef[] = [e.runCancelRequested, e.runPauseRequested, e.adapterVersionDeleteRequested];

/** Where a client's message on a subject `loraline.…` arrives. */
export const doorSubject = (subject: string): string => subject.replace(/^loraline\./, "door.");

/**
 * Where an event is said once more, so that tenants' own clients hear it: services speak through imports of services, and NATS tells no stream's export of
 * what came through one. The import of the tenant's account turns it back.
 */
export const toldSubject = (subject: string): string => subject.replace(/^loraline\./, "told.");

/** Filter that matches this command of a tenant on its way to the door. */
export const doorFilter = (event: EventDef, tenant: string): string => doorSubject(filterFor(event, { tenant }));

/** What of a tenant's client waits to be taken. It holds little, and NATS refuses what is too much, so a flood ends here. */
export const doorStream = (tenant: string): StreamDef => ({
  name: `DOOR_${tenant}`,
  description: `Commands of the NATS client of ${tenant} that are not taken yet`,
  subjects: [`door.${tenant}.>`],
  storedAs: { from: `door.${tenant}.>`, to: `loraline.${tenant}.>` },
  maxAgeMs: 0,
  dedupeMs: 10 * 60_000,
  maxBytes: 8 * 1024 ** 2,
  maxMessages: 1000,
  // An event's largest body, and headers.
  maxMessageBytes: 576 * 1024,
  refusesWhenFull: true,
  queue: true,
});

/** One message at a time, in the order in which they came, however many gateways there are. */
export const doorConsumer = (tenant: string): ConsumerDef => ({
  durable: `door-${tenant}`,
  stream: doorStream(tenant),
  events: tenantCommands,
  ackWaitMs: 15_000,
  maxDeliver: 6,
  concurrency: 1,
  maxAckPending: 1,
});
