/** The version of everything in this repository: the command line, the server, the chart. A test checks that all are the same. */
export const version = "0.1.0";
