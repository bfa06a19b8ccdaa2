"""Duplicates among clips: copies with the same coded pictures, and clips whose embeddings are nearly the same.

fit     one task: copies by the digests of the clips' table; centroids of the embeddings, by k-means over a sample
assign  an array over the embeddings: each row's nearest centroid, and the clusters in which it is a guest (sphere.py);
        rows sorted by cluster, so that what follows reads its own alone
prune   an array over clusters: each row's largest cosine to one before it
merge   the decisions, the tables of Cosmos-Curate, a row of summary for each eps, and a page of pairs to look at

One order over all clips decides who stays: rows farther from their centroid first, as in SemDeDup (arXiv 2303.09540,
"hard"), then by uuid. A row goes if a row before it is as near as 1 - eps. So no two that stay are that near, and of
several copies exactly the first stays. Of clips with the same coded pictures the first in the order of the shards
stands for all, and the others are not compared. The number of shards, tasks and threads changes nothing.
"""
