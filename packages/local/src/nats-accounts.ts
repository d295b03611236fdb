/** Pure: NATS' accounts and users, the same as those of the chart (helm/loraline/templates/nats.yaml). */
import { doorSubject, natsPermissions, toldSubject } from "@loraline/contracts";

interface NatsAccountsOptions {
  tenants: readonly string[];
  /** Users of the account LORALINE that may do everything. */
  administrators?: readonly string[];
  passwordOf(user: string): string;
}

/** The account to which all streams belong. */
export const mainAccount = "LORALINE";
/** Account and user of a tenant's own client. */
export const natsUserOf = (tenant: string): string => `tenant.${tenant}`;

/** Messages that come without being asked for: a tenant's events, and what a service watches, which comes to its inbox. */
const streamsOf = (subjects: readonly string[]): string[] => subjects.filter((subject) => !subject.startsWith("_INBOX_tenant_"));

/** The server keeps the reply subject until no message has come for so long; a pull lasts five seconds at most. */
const manyAnswers = { response_type: "Stream", response_threshold: "30s" };

/**
 * NATS does not ask whether somebody may publish on the reply subject of a message, and JetStream answers there. Between accounts the
 * server puts a reply subject of its own in its place, so everybody but those who manage the streams has an account of their own.
 * @returns the value of `accounts` in the server's configuration.
 */
export function natsAccounts({ tenants, administrators = [], passwordOf }: NatsAccountsOptions): Record<string, object> {
  const { services, perTenant, tenant, managers } = natsPermissions;
  const named = (texts: readonly string[], name: string): string[] => texts.map((text) => text.replaceAll("{tenant}", name));
  const ofEach = (texts: readonly string[]): string[] => tenants.flatMap((name) => named(texts, name));
  const answersMany = [...natsPermissions.manyAnswers, ...ofEach(natsPermissions.manyAnswers)];
  /** `arrives`: the subject on which a message comes to the streams' account. `told`: the one on which it tells what is listened to. */
  const apart = [
    ...Object.entries(services).map(([user, { publish, subscribe }]) => ({
      user,
      publish: { allow: [...publish.allow, ...ofEach(perTenant[user] ?? [])] },
      subscribe,
      arrives: (subject: string) => subject,
      told: (subject: string) => subject,
    })),
    ...tenants.map((name) => ({
      user: natsUserOf(name),
      publish: { allow: named(tenant.publish.allow, name) },
      subscribe: { allow: named(tenant.subscribe.allow, name) },
      arrives: doorSubject,
      told: toldSubject,
    })),
  ];
  return {
    [mainAccount]: {
      jetstream: "enabled",
      users: [
        ...Object.entries(managers).map(([user, permissions]) => ({ user, password: passwordOf(user), permissions })),
        ...administrators.map((user) => ({ user, password: passwordOf(user) })),
      ],
      exports: apart.flatMap(({ user, publish, subscribe, arrives, told }) => [
        ...streamsOf(subscribe.allow).map((subject) => ({ stream: told(subject), accounts: [user] })),
        ...publish.allow.map((subject) => ({
          service: arrives(subject),
          accounts: [user],
          ...(answersMany.includes(subject) ? manyAnswers : {}),
        })),
      ]),
    },
    ...Object.fromEntries(
      apart.map(({ user, publish, subscribe, arrives, told }) => [
        user,
        {
          users: [{ user, password: passwordOf(user), permissions: { publish, subscribe } }],
          imports: [
            ...streamsOf(subscribe.allow).map((subject) => ({
              stream: { account: mainAccount, subject: told(subject) },
              ...(told(subject) === subject ? {} : { to: subject }),
            })),
            ...publish.allow.map((subject) => ({ service: { account: mainAccount, subject: arrives(subject) }, to: subject })),
          ],
        },
      ]),
    ),
  };
}
