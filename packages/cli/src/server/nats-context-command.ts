/** `loraline nats-context`: how other programs speak NATS with the server on this machine. */
import { mkdir, rm, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { inboxPrefixOf } from "@loraline/contracts";
import { findLine, natsUserOf, readNatsPassword } from "@loraline/local/state";
import { InvalidArgumentError } from "commander";
import { type AddCommands, examples } from "../command.ts";
import { exitCodes, Failure } from "../failure.ts";
import { shortPath } from "../terminal.ts";

interface Options {
  write?: string | true;
  env: boolean;
  admin: boolean;
}

function contextName(text: string): string {
  if (!/^\w[\w.-]*$/.test(text)) throw new InvalidArgumentError("Use letters, digits, dots, dashes and underscores.");
  return text;
}

export const addNatsContextCommand: AddCommands = (program, { globals, env: environment, print, terminal }) => {
  program
    .command("nats-context")
    .description("print the context with which the `nats` tool speaks with the server on this machine, as the client of its tenant")
    .option("--write [name]", "write it to where `nats` keeps its contexts, as NAME (default: loraline), and print where", contextName)
    .option("--env", "print NATS_URL, NATS_USER, NATS_PASS and NATS_INBOX_PREFIX for a shell instead", false)
    .option("--admin", "as the user that may do everything, also what breaks the server", false)
    .addHelpText(
      "after",
      examples(
        "loraline nats-context --write && nats --context loraline sub 'loraline.local.>'",
        "loraline nats-context --write loraline-admin --admin && nats --context loraline-admin stream ls",
        'eval "$(loraline nats-context --env)"',
      ),
    )
    .action(async ({ write, env, admin }: Options) => {
      const stateDir = resolve(globals().state);
      const line = await findLine(stateDir);
      if (line === undefined) {
        throw new Failure(
          exitCodes.unreachable,
          "NO_LINE",
          `no server runs on ${stateDir}. Start one with \`loraline up\`, or name its state directory with --state. Passwords of a cluster are in the Secret …-nats-auth.`,
        );
      }
      const user = admin ? "local" : natsUserOf(line.tenant);
      const password = await readNatsPassword(stateDir, user);
      if (password === undefined) {
        throw new Failure(
          exitCodes.unauthorized,
          "NATS_PASSWORD_MISSING",
          `${join(stateDir, "nats-auth")} has no password of ${user}, or cannot be read. Ask as the owner of the state directory.`,
          { param: "--state" },
        );
      }
      // A tenant's user hears answers below this prefix only; the dot of its name would end the prefix' first part. The administrator hears all.
      const inboxPrefix = admin ? "_INBOX" : inboxPrefixOf(user.replace(".", "_"));
      const description = `Loraline on this machine, ${admin ? "as its administrator" : `as the client of ${line.tenant}`}`;
      const context = { description, url: line.natsUrl, user, password, inbox_prefix: inboxPrefix };
      if (env) {
        const variables = { NATS_URL: line.natsUrl, NATS_USER: user, NATS_PASS: password, NATS_INBOX_PREFIX: inboxPrefix };
        return print(variables, () => Object.entries(variables).map(([name, value]) => `export ${name}='${value}'`));
      }
      if (write === undefined) return void terminal.out.write(`${JSON.stringify(context, null, 2)}\n`);

      const name = write === true ? "loraline" : write;
      const config = environment["XDG_CONFIG_HOME"] ?? join(environment["HOME"] ?? "", ".config");
      const file = resolve(config, "nats/context", `${name}.json`);
      await mkdir(dirname(file), { recursive: true, mode: 0o700 });
      // One that is there keeps its mode, so it goes first: the password is its owner's alone.
      await rm(file, { force: true });
      await writeFile(file, `${JSON.stringify(context, null, 2)}\n`, { mode: 0o600 });
      print({ name, file }, () => [`${shortPath(file)}: nats --context ${name} …`]);
    });
};
