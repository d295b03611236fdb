/** `loraline engines` */
import type { AddCommands } from "../command.ts";
import { listEngines } from "./show-engine.ts";

export const addEnginesCommand: AddCommands = (program, { connect, print }) => {
  program
    .command("engines")
    .description("list engines, their replicas, and what would make them serve better")
    .action(async () => {
      const { data } = await (await connect()).listEngines();
      print(data, () => (data.length === 0 ? ["no engines yet"] : listEngines(data)));
    });
};
