"""What measures and shows: data sets, recall beside other quantizers, evaluation, the demo (extra ``bench``)."""
