"""The program of `make demo-spark`: two tables, each of whose rows is a partner of one row of the other, are joined and summed up,
again and again.

Nothing is where it is needed: the keys are permutations, so the join sends two thirds of both tables to another host. What comes
out of it covers every byte that was sent, and qemu-tests/src/demo/spark/expected.rs computes the same without Spark. One line of
JSON a round goes to standard output.
"""

import argparse
import json
import os
import time

from pyspark.sql import SparkSession


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, required=True, help="rows of each table")
    parser.add_argument("--groups", type=int, required=True, help="rows of the result")
    parser.add_argument("--left", type=int, required=True, help="factor of the left table's keys, prime to the number of rows")
    parser.add_argument("--right", type=int, required=True, help="the same for the right table")
    parser.add_argument("--rounds", type=int, required=True, help="the most rounds")
    parser.add_argument("--last", required=True, help="file whose appearance makes the next round the last one")
    parser.add_argument("settings", nargs="+", metavar="NAME=VALUE", help="settings of Spark")
    return parser.parse_args()


def result(spark, asked, number):
    def table(name, factor, shift):
        return spark.range(0, asked.rows, 1, 12).selectExpr(
            f"id AS {name}",
            f"(id * {factor} + {shift}) % {asked.rows} AS key",
            f"sha2(concat('{name}', id), 512) AS {name}_load",
        )

    # Only one is shifted, so that partners change from round to round.
    left, right = table("a", asked.left, number), table("b", asked.right, 0)
    left.join(right, "key").createOrReplaceTempView("joined")
    rows = spark.sql(
        f"""
        SELECT a % {asked.groups} AS place, count(*), sum(a), sum(b),
               sum(cast(conv(substring(sha2(concat(a_load, b_load), 256), 1, 10), 16, 10) AS bigint))
        FROM joined GROUP BY place ORDER BY place
        """
    ).collect()
    return [list(row)[1:] for row in rows]


def main():
    asked = arguments()
    builder = SparkSession.builder
    for setting in asked.settings:
        builder = builder.config(*setting.split("=", 1))
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("WARN")
    for number in range(1, asked.rounds + 1):
        is_last = number == asked.rounds or os.path.exists(asked.last)
        started = time.time()
        groups = result(spark, asked, number)
        print(json.dumps({"started": started, "ended": time.time(), "groups": groups}), flush=True)
        if is_last:
            break
    spark.stop()


if __name__ == "__main__":
    main()
